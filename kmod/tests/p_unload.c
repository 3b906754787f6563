// SPDX-License-Identifier: GPL-2.0
/* Unloading with memory still merged, loading again, parameters, and the other directory. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/wait.h>

#include "partition.h"

#define N	500

static int unload(void)
{
	return syscall(SYS_delete_module, "ksm_planner", O_NONBLOCK) ? errno : 0;
}

static int load(const char *parameters)
{
	int fd = open("/lib/ksm_planner.ko", O_RDONLY), error;

	need(fd >= 0);
	error = syscall(SYS_finit_module, fd, parameters, 0) ? errno : 0;
	close(fd);
	return error;
}

int main(void)
{
	struct target a, b;
	uint64_t at_a, at_b, *frames;
	long long before;
	size_t i, n_free;
	int fd, scan;

	at_a = subject(&a, N, 10);
	at_b = subject(&b, N, 10);
	allow(true);
	fd = partition("kept");
	scan = ksm_open("scanned", O_RDWR | KSM_CREAT, 0600);
	need(scan >= 0 && !ksm_attach(scan, a.pid, (void *)at_a, PAGE));
	merge(fd, a.pid, at_a, N);
	is(merge(fd, b.pid, at_b, N).n_merged, N, "merged");
	is(unload(), EAGAIN, "a descriptor keeps the module");
	close(scan);
	is(unload(), EAGAIN, "each of them");
	close(fd);
	is(unload(), 0, "without, it is unloaded, with pages merged and a scanner running");
	ok(!sysfs_exists(""), "its directory is gone");
	ok(!access("/sys/kernel/mm/ksm/run", F_OK), "the kernel's own files are there");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "pages stay merged");
	is(order(&a, ORDER_CHECK, at_a, N, 10), 0, "with their content");
	order(&a, ORDER_FILL, at_a, 1, 99);
	is(order(&a, ORDER_CHECK, at_a, 1, 99), 0, "they can be written");
	is(order(&b, ORDER_CHECK, at_b, N, 10), 0, "in private");

	is(load("allow_merge=1 max_pages=100"), 0, "loaded with parameters");
	is(number_in(PARAMETERS "max_pages", NULL), 100, "max_pages is");
	fd = partition("kept");
	{
		struct ksm_partition_counts counts = merge(fd, a.pid, at_a, N);

		is(counts.refused[KSM_PARTITION_REFUSED_FOREIGN] +
		   counts.refused[KSM_PARTITION_REFUSED_SPECIAL], N - 1,
		   "what an earlier load has merged is refused");
		is(counts.n_candidates, 1, "but what was written since");
	}
	close(fd);
	is(unload(), 0, "unloaded");

	/* Freed by their last mappings, with no module there. */
	frames = frames_of(b.pid, at_b, N);
	before = number_in("/proc/meminfo", "MemFree:") / 4;
	target_kill(&a);
	target_kill(&b);
	for (i = n_free = 0; i < N; i++)
		n_free += kpagecount(frames[i]) == 0;
	is(n_free, N, "the last mappings free the frames");
	ok(number_in("/proc/meminfo", "MemFree:") / 4 > before + N / 2, "to be used again");

	is(load("own_directory=1 allow_merge=1"), 0, "loaded with own_directory=1");
	fd = partition("own");
	ok(!sysfs_exists(""), "there is nothing in the kernel's directory");
	is(number_in("/sys/kernel/ksm_partition/own/calls", NULL), 0, "but in the other");
	close(fd);
	need(!ksm_unlink("own"));
	is(unload(), 0, "unloaded");
	ok(access("/sys/kernel/ksm_partition", F_OK) < 0, "that is gone, too");
	for (i = 0; i < 5; i++) {
		is(load(""), 0, "loaded again");
		is(error_of(ksm_open("x", NEW_SYNC, 0600)), EPERM, "merging is off");
		ok(sysfs_exists(""), "the directory is there");
		is(unload(), 0, "unloaded again");
	}
	need(!load(""));
	return tap_done();
}
