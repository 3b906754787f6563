"""Forecast and replay of a captured host, and how they are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planner.fleet import FleetHost
from planner.ksm import BUILTIN_UNMEASURED
from planner.live.compare import compare, time_to
from planner.live.model import (
    Setting,
    forecast_host,
    host_of,
    kernel_of,
    replay_host,
    run_model,
    warm_up_ns,
)
from planner.trace import open_trace
from tests.trace_builder import SECOND, GuestPlan, MmPlan, build_trace, pages_of

KNOBS: dict[str, int | str] = {"run": 1, "pages_to_scan": 100, "sleep_millisecs": 20,
                               "max_page_sharing": 256, "smart_scan": 0, "use_zero_pages": 0,
                               "merge_across_nodes": 1, "advisor_mode": "none"}
SETTING = Setting.of_files("6.18", KNOBS, BUILTIN_UNMEASURED)


def captured(path: Path) -> FleetHost:
    """Two processes with pages 1..5; page 3 of the first changes all the time, 5 late."""
    first = [pages_of([1, 2, 30 + k, 4, 5 if k < 3 else 50]) for k in range(4)]
    second = [pages_of([1, 2, 3, 4, 5])] * 4
    return host_of(open_trace(build_trace(path, [GuestPlan("a", {}, [
        MmPlan(first), MmPlan(second)])], every_ns=10 * SECOND)), 250)


def test_a_replay_starts_from_the_state_then_and_keeps_later_events(tmp_path: Path) -> None:
    host = captured(tmp_path / "t")
    start_ns = 20 * SECOND - SECOND  # time 0 is the end of the first snapshot, at 1 s
    replay = replay_host(host, start_ns)
    assert len(host.event_site) == 4
    assert sorted(replay.event_site.tolist()) == [2, 4]
    assert (replay.event_time_ns >= 0).all()
    before = host.event_time_ns < start_ns
    assert replay.site_content[2] == host.event_content[before][-1]
    assert replay.site_content[4] == host.site_content[4]


def test_a_forecast_goes_on_writing_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    host = captured(tmp_path / "t")
    forecast = forecast_host(host, 20 * SECOND, before_ns=20 * SECOND, duration_ns=65 * SECOND)
    # Page 3 was written twice in 20 s: two more writes in each 20 s from then on.
    assert set(forecast.event_site.tolist()) == {2}
    assert 6 <= len(forecast.event_site) <= 8
    assert (np.diff(forecast.event_time_ns) >= 0).all()
    assert forecast.event_time_ns.max() < 65 * SECOND
    assert len(set(forecast.event_content.tolist())) == len(forecast.event_content)
    assert not set(forecast.event_content.tolist()) & set(host.site_content.tolist())
    assert len(forecast.content_is_zero) == forecast.event_content.max() + 1


def test_a_forecast_without_churn_has_no_events(tmp_path: Path) -> None:
    host = captured(tmp_path / "t")
    assert len(forecast_host(host, SECOND, before_ns=0, duration_ns=SECOND).event_site) == 0


def test_the_model_merges_what_is_equal(tmp_path: Path) -> None:
    replay = replay_host(captured(tmp_path / "t"), 20 * SECOND)
    found = run_model(replay, SETTING, np.array([0, SECOND, 30 * SECOND], np.int64))
    assert found["pages_shared"].tolist() == [0, 4, 4]
    # The late write leaves a merged page: it is still shared until ksmd comes by, then alone.
    assert found["pages_sharing"].tolist() == [0, 4, 3]
    assert found["frames"].tolist() == [10, 6, 7]
    assert (found["base_frames"] == 10).all()
    assert (np.diff(found["ksmd_cpu_ns"]) > 0).all()
    assert found["cow_breaks"][-1] == 1


def test_warming_up_lets_ksmd_settle(tmp_path: Path) -> None:
    replay = replay_host(captured(tmp_path / "t"), 20 * SECOND)
    warm_ns = warm_up_ns(replay, SETTING)
    assert run_model(replay, SETTING, np.array([warm_ns], np.int64))["full_scans"][0] >= 14


@pytest.mark.parametrize(("release", "kernel"), [
    ("6.1.0-49-cloud-amd64", "6.1"), ("5.15.0", "6.1"), ("6.12.38+deb13", "6.12"),
    ("6.18.44-fc", "6.18"), ("7.2.13", "6.18"), ("strange", "6.18")])
def test_a_release_has_a_model(release: str, kernel: str) -> None:
    assert kernel_of(release) == kernel


def test_errors_are_shares_of_what_was_measured() -> None:
    found = compare("pages_sharing", np.array([0, 100, 200]), np.array([0, 110, 190]))
    assert found.last_error == pytest.approx(-0.05)
    assert found.error == pytest.approx(20 / 300)
    assert found.bias == pytest.approx(0)
    nothing = compare("ksm_zero_pages", np.array([0, 0]), np.array([0, 0]))
    assert (nothing.last_error, nothing.error, nothing.bias) == (0.0, 0.0, 0.0)
    wrong = compare("ksm_zero_pages", np.array([0, 0]), np.array([0, 3]))
    assert (wrong.last_error, wrong.error) == (None, None)


def test_the_time_to_90_percent_is_interpolated() -> None:
    times = np.array([0, 10, 20, 30], np.int64) * SECOND
    found = time_to("pages_sharing", 0.9, times, np.array([0, 80, 100, 100]),
                    np.array([0, 40, 90, 100]))
    assert found.measured_ns == 15 * SECOND
    assert found.model_ns == 20 * SECOND
    assert found.error == pytest.approx(1 / 3)
    never = time_to("pages_sharing", 0.9, times, np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert (never.measured_ns, never.error) == (None, None)
