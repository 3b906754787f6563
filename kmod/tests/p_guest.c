// SPDX-License-Identifier: GPL-2.0
/*
 * Guests as targets: two QEMU processes with guest/guest.c in them, whose RAM is merged and unmerged
 * while they run. QEMU translates here, too; a guest's accesses are then the process's own, and there
 * are no secondary page tables.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "partition.h"

#define RAM		(16UL << 20)
#define DATA		(4UL << 20)
#define N		1024
#define N_EQUAL		(N - N / 16)
#define SECONDS		5

struct guest {
	pid_t pid;
	uint64_t ram;
	char path[32];
};

static void start(struct guest *guest, int number)
{
	char output[48];

	snprintf(guest->path, sizeof(guest->path), "/tmp/guest%d", number);
	snprintf(output, sizeof(output), "file:%s", guest->path);
	fflush(stdout);
	guest->pid = fork();
	if (!guest->pid) {
		execl("/guest/qemu", "qemu", "-machine", "pc,accel=tcg,mem-merge=off", "-m", "16",
		      "-nodefaults", "-display", "none", "-L", "/guest", "-bios", "guest.bin",
		      "-debugcon", output, (char *)NULL);
		_exit(127);
	}
}

/* What a guest has said: how many of a letter. */
static int said(const struct guest *guest, char letter)
{
	static char text[1 << 16];
	int fd = open(guest->path, O_RDONLY), n = 0;
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof(text));

	close(fd);
	while (length-- > 0)
		n += text[length] == letter;
	return n;
}

static bool wait_said(const struct guest *guest, char letter, int n)
{
	int i;

	for (i = 0; i < 3000 && said(guest, letter) < n; i++) {
		if (waitpid(guest->pid, NULL, WNOHANG) == guest->pid)
			return false;
		usleep(20000);
	}
	return said(guest, letter) >= n;
}

/* The mapping of a guest's RAM: there is one of its size. */
static uint64_t ram_of(pid_t pid)
{
	unsigned long from, to;
	uint64_t found = 0;
	char path[64], line[512];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	need(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx rw-p", &from, &to) == 2 && to - from == RAM)
			found = from;
	fclose(maps);
	return found;
}

int main(void)
{
	struct ksm_partition_counts counts;
	struct guest guests[2];
	struct timespec begun, now;
	uint64_t n_merged = 0, n_unmerged = 0, n_huge = 0;
	int fd, i, rounds[2], n_calls = 0;

	allow(true);
	fd = partition("guests");
	for (i = 0; i < 2; i++)
		start(&guests[i], i);
	for (i = 0; i < 2; i++)
		if (!ok(wait_said(&guests[i], '.', 1), "guest %d runs", i))
			return tap_done();
	for (i = 0; i < 2; i++) {
		guests[i].ram = ram_of(guests[i].pid);
		need(guests[i].ram);
		counts = merge(fd, guests[i].pid, guests[i].ram, RAM / PAGE);
		n_huge += counts.refused[KSM_PARTITION_REFUSED_THP];
	}
	ok(n_huge >= N, "RAM of guests is huge pages, which are refused (%llu)",
	   (unsigned long long)n_huge);
	for (i = 0; i < 2; i++)
		is(error_of(ksm_split(guests[i].pid, (void *)guests[i].ram, RAM)), 0,
		   "those of guest %d are split", i);
	for (i = 0; i < 10; i++) {
		counts = merge(fd, guests[i % 2].pid, guests[i % 2].ram, RAM / PAGE);
		n_merged += counts.n_merged + counts.n_partners;
	}
	/* Those that a guest is just writing to have parted again. */
	i = frames_equal(guests[0].pid, guests[0].ram + DATA, guests[1].pid, guests[1].ram + DATA, N);
	ok(i >= N_EQUAL, "their equal pages are on one frame (%d of %d)", i, N_EQUAL);
	diag("%llu pages merged, pages_sharing %llu", (unsigned long long)n_merged,
	     counters_of(fd).pages_sharing);

	for (i = 0; i < 2; i++)
		rounds[i] = said(&guests[i], '.');
	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (;; n_calls++) {
		struct guest *guest = &guests[n_calls % 2];

		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - begun.tv_sec >= SECONDS)
			break;
		if (n_calls % 7 == 6)
			n_unmerged += unmerge(fd, guest->pid, guest->ram, RAM / PAGE).n_unmerged;
		else
			n_merged += merge(fd, guest->pid, guest->ram, RAM / PAGE).n_merged;
		usleep(1000);
	}
	for (i = 0; i < 2; i++)
		ok(wait_said(&guests[i], '.', rounds[i] + 3), "guest %d goes on", i);
	for (i = 0; i < 2; i++)
		is(said(&guests[i], 'X'), 0, "and has found nothing wrong in %d rounds",
		   said(&guests[i], '.'));
	diag("%d calls, %llu pages merged, %llu unmerged", n_calls, (unsigned long long)n_merged,
	     (unsigned long long)n_unmerged);
	ok(n_unmerged > N_EQUAL, "pages were unmerged meanwhile");
	for (i = 0; i < 2; i++) {
		kill(guests[i].pid, SIGKILL);
		waitpid(guests[i].pid, NULL, 0);
	}
	is(counters_of(fd).pages_shared, 0, "without guests, nothing is shared");
	close(fd);
	need(!ksm_unlink("guests"));
	allow(false);
	return tap_done();
}
