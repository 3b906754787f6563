"""Loops of ksmtuned and of KubeVirt's virt-handler, written down as their sources go.

`KSMTUNED_SH` is ksmtuned's arithmetic in a shell: it reads `free committed` in kB, line by line,
and prints run, pages_to_scan and sleep_millisecs after each look.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

KSMTUNED_SH = """\
npages=0
run=0 pages=100 millisecs=20
sleep=$((KSM_SLEEP_MSEC * 16 * 1024 * 1024 / total))
[ $sleep -le 10 ] && sleep=10
thres=$((total * KSM_THRES_COEF / 100))
if [ $KSM_THRES_CONST -gt $thres ]; then
    thres=$KSM_THRES_CONST
fi
increase_npages() {
    npages=$((npages + $1))
    if [ $npages -lt $KSM_NPAGES_MIN ]; then
        npages=$KSM_NPAGES_MIN
    elif [ $npages -gt $KSM_NPAGES_MAX ]; then
        npages=$KSM_NPAGES_MAX
    fi
}
while read -r free committed; do
    if [ $((committed + thres)) -lt $total ] && [ $free -gt $thres ]; then
        run=0
    else
        if [ $free -lt $thres ]; then
            increase_npages $KSM_NPAGES_BOOST
        else
            increase_npages $KSM_NPAGES_DECAY
        fi
        pages=$npages millisecs=$sleep run=1
    fi
    echo $run $pages $millisecs
done
"""


@dataclass
class KsmtunedScript:
    """The script's variables, and the files it writes."""

    total: int
    conf: dict[str, int]
    npages: int = 0
    files: dict[str, int] = field(
        default_factory=lambda: {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20})

    def adjust(self, free: int, committed: int) -> None:
        conf = self.conf
        sleep = conf["KSM_SLEEP_MSEC"] * 16 * 1024 * 1024 // self.total
        if sleep <= 10:
            sleep = 10
        thres = self.total * conf["KSM_THRES_COEF"] // 100
        if conf["KSM_THRES_CONST"] > thres:
            thres = conf["KSM_THRES_CONST"]
        if committed + thres < self.total and free > thres:
            self.files["run"] = 0
            return
        delta = conf["KSM_NPAGES_BOOST"] if free < thres else conf["KSM_NPAGES_DECAY"]
        self.npages = self.npages + delta
        if self.npages < conf["KSM_NPAGES_MIN"]:
            self.npages = conf["KSM_NPAGES_MIN"]
        elif self.npages > conf["KSM_NPAGES_MAX"]:
            self.npages = conf["KSM_NPAGES_MAX"]
        self.files = {"run": 1, "pages_to_scan": self.npages, "sleep_millisecs": sleep}


def float32(value: float) -> float:
    """A number as a 32-bit float holds it."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


@dataclass
class VirtHandler:
    """`calculateNewRunSleepAndPages` and `writeKsmValuesToFiles`: what it reads are the files."""

    boost: int
    decay: int
    n_min: int
    n_max: int
    n_init: int
    baseline: int
    free_percent: float
    files: dict[str, int] = field(
        default_factory=lambda: {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20})

    def spin(self, total: int, available: int) -> None:
        running = self.files["run"] == 1
        pages = self.files["pages_to_scan"]
        sleep = self.baseline * (16 * 1024 * 1024) // (total - available)
        if sleep < self.baseline // 10:
            sleep = self.baseline // 10
        if float32(available) > float32(float32(total) * float32(self.free_percent)):
            if not running:
                self.write(False, 0, 0)
                return
            pages += self.decay
            if pages < self.n_min:
                pages = self.n_min
                running = False
            self.write(running, sleep, pages)
        elif running:
            pages += self.boost
            if pages > self.n_max:
                pages = self.n_max
            self.write(True, sleep, pages)
        else:
            self.write(True, sleep, self.n_init)

    def write(self, running: bool, sleep: int, pages: int) -> None:
        if running:
            self.files["sleep_millisecs"] = sleep
            self.files["pages_to_scan"] = pages
        self.files["run"] = int(running)
