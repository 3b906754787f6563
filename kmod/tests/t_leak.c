// SPDX-License-Identifier: GPL-2.0
/*
 * Nothing is left behind: pages, address spaces, buffers. There is no kmemleak in these kernels, so
 * memory is counted before and after many dumps; and the module's own cache complains at unload.
 * Also says how fast a dump is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define N_PAGES	8192
#define N_SPEED	65536	/* 256 MiB */

static void work(uint64_t *shared)
{
	char *at = anon(N_PAGES * PAGE), *huge = anon_huge(8 * HUGE);
	int i;

	for (i = 0; i < N_PAGES; i++)
		fill(at + i * PAGE, i);
	for (i = 0; i < 8 * 512; i++)
		fill(huge + i * PAGE, i);
	shared[0] = (uintptr_t)at;
}

static void work_large(uint64_t *shared)
{
	char *at = anon(N_SPEED * PAGE);
	int i;

	for (i = 0; i < N_SPEED; i++)
		fill(at + i * PAGE, i);
	shared[0] = (uintptr_t)at;
}

/* Free memory in KiB after what can be dropped was dropped. */
static long long settled(void)
{
	write_to("/proc/sys/vm/drop_caches", "3");
	write_to("/proc/sys/vm/compact_memory", "1");
	usleep(300000);
	return number_in("/proc/meminfo", "MemFree:");
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/* Dumps of targets that come and go: some read whole, some in part, some not, some never started. */
static void dumps(int n)
{
	static char bytes[1 << 18];
	struct pagehash_start start;
	struct target target;
	struct dump dump;
	int i, fd;

	for (; n; n--) {
		target_start(&target, work);
		start_of(&start, target.pid);
		for (i = 0; i < 40; i++) {
			fd = i % 8 ? dump_open(&start) : open(DEVICE, O_RDONLY);
			need(fd >= 0);
			if (i % 4 == 1)
				need(read(fd, bytes, i * 5000) == i * 5000);
			if (i % 8 == 5)
				need(!ioctl(fd, PAGEHASH_IOC_START, &start));
			close(fd);
		}
		dump_take(&dump, target.pid, 0);
		dump_free(&dump);
		fd = dump_open(&start);
		need(fd >= 0 && read(fd, bytes, 200000) == 200000);
		target_kill(&target);
		close(fd);
	}
}

static void work_small(uint64_t *shared)
{
	char *at = anon(2 * HUGE);
	int i;

	for (i = 0; i < 1024; i++)
		fill(at + i * PAGE, i);
	shared[0] = (uintptr_t)at;
}

/* Few dumps of small targets: a module that loses pages is found before the machine has none. */
static bool is_tidy(void)
{
	struct target target;
	struct dump dump;
	long long before = 0;
	int i;

	for (i = 0; i < 5; i++) {
		if (i == 1)
			before = settled();
		target_start(&target, work_small);
		dump_take(&dump, target.pid, 0);
		dump_free(&dump);
		target_kill(&target);
	}
	return ok(settled() > before - 3072, "no memory is lost in 4 dumps of 4 MiB");
}

static void measure(void)
{
	struct target target;
	struct dump dump;
	double start, seconds_;
	int i;

	target_start(&target, work_large);
	for (i = 0; i < 2; i++) {
		start = seconds();
		dump_take(&dump, target.pid, i ? PAGEHASH_START_NO_HASH : 0);
		seconds_ = seconds() - start;
		diag("speed, %s: %zu records in %.3f s, %.0f records/s, %.2f GiB/s",
		     i ? "walk only" : "with hashes", dump.n_pages, seconds_, dump.n_pages / seconds_,
		     dump.n_pages / seconds_ / 262144);
		diag("mmap lock: taken %llu times, longest %.3f ms, mean %.3f ms",
		     (unsigned long long)dump.trailer->n_locks, dump.trailer->lock_max_ns / 1e6,
		     dump.trailer->lock_total_ns / 1e6 / dump.trailer->n_locks);
		ok(dump.n_pages >= N_SPEED && dump.trailer->n_locks >= N_SPEED / 512,
		   "a large dump takes the lock once a page table");
		dump_free(&dump);
	}
	target_kill(&target);
}

int main(void)
{
	long long before, after;

	if (!is_tidy())
		return tap_done();
	measure();
	dumps(2);
	before = settled();
	dumps(10);
	after = settled();
	/* One leaked page table of references is 2 MiB, one address space 48 MiB, 400 buffers 20. */
	ok(after > before - 3072, "no memory is lost in 420 dumps (%lld KiB before, %lld after)", before,
	   after);
	return tap_done();
}
