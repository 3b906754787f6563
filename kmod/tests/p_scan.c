// SPDX-License-Identifier: GPL-2.0
/* Partitions with a scanner: attached ranges are merged in the background. */
#define _GNU_SOURCE
#include <ctype.h>
#include <sys/wait.h>

#include "partition.h"

#define N	400
#define READING	(20 * 1000)

/* Whether a kernel thread of this name runs. */
static bool thread_runs(const char *name)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	bool is_found = false;
	char path[300], text[64];

	need(proc);
	while (!is_found && (entry = readdir(proc))) {
		int fd;
		ssize_t n;

		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		n = read(fd, text, sizeof(text) - 1);
		close(fd);
		text[n > 0 ? n - 1 : 0] = 0;
		is_found = !strcmp(text, name);
	}
	closedir(proc);
	return is_found;
}

/* Waits until a counter of sysfs has a value; whether it got it. */
static bool wait_for(const char *name, const char *file, long long value)
{
	int i;

	for (i = 0; i < 1000 && sysfs(name, file) != value; i++)
		usleep(READING);
	return sysfs(name, file) == value;
}

/* Waits until there have been so many full scans. */
static bool wait_scans(const char *name, long long until)
{
	int i;

	for (i = 0; i < 1000 && sysfs(name, "full_scans") < until; i++)
		usleep(READING);
	return sysfs(name, "full_scans") >= until;
}

int main(void)
{
	struct ksm_partition_counters counters;
	struct target a, b;
	uint64_t at_a, at_b;
	long long scanned;
	int fd, reader;

	allow(true);
	fd = ksm_open("scan", O_RDWR | KSM_CREAT | KSM_EXCL, 0600);
	need(fd >= 0);
	is(sysfs("scan", "sync"), 0, "a partition without KSM_SYNC");
	ok(thread_runs("ksm/scan"), "has a thread");
	is(sysfs("scan", "pages_to_scan"), 100, "which scans 100 pages");
	is(sysfs("scan", "sleep_millisecs"), 20, "and sleeps 20 ms");
	is(sysfs_write("scan", "sleep_millisecs", "5"), 0, "less, if it is told so");
	is(sysfs("scan", "sleep_millisecs"), 5, "it is");
	is(sysfs_write("scan", "pages_to_scan", "x"), EINVAL, "what is no number is not taken");
	at_a = subject(&a, N, 1);
	at_b = subject(&b, N, 1);
	is(error_of(ksm_merge(fd, a.pid, (void *)at_a, PAGE)), EOPNOTSUPP, "it merges by no call");
	is(error_of(ksm_attach(fd, a.pid, (void *)(at_a + 1), PAGE)), EINVAL, "attach: a bad range");
	is(error_of(ksm_attach(fd, 4000000, (void *)at_a, PAGE)), ESRCH, "attach: no such process");
	reader = ksm_open("scan", O_RDONLY, 0);
	is(error_of(ksm_attach(reader, a.pid, (void *)at_a, PAGE)), EACCES, "attach: O_RDONLY");
	close(reader);
	is(error_of(ksm_attach(fd, a.pid, (void *)at_a, N * PAGE)), 0, "attached");
	is(error_of(ksm_attach(fd, a.pid, (void *)at_a, N * PAGE)), 0, "attached again");
	is(counters_of(fd).n_ranges, 1, "is attached once");
	ok(wait_for("scan", "pages_unshared", N), "pages that do not change become candidates");
	is(error_of(ksm_attach(fd, b.pid, (void *)at_b, N * PAGE)), 0, "another is attached");
	ok(wait_for("scan", "pages_sharing", N), "and all are merged");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "each pair is on one frame");
	is(sysfs("scan", "pages_shared"), N, "pages_shared");
	is(sysfs("scan", "pages_unshared"), 0, "pages_unshared");
	is(order(&a, ORDER_CHECK, at_a, N, 1), 0, "the content is right");
	is(order(&b, ORDER_CHECK, at_b, N, 1), 0, "in both");
	is(counters_of(fd).calls, 0, "that was no call");
	ok(sysfs("scan", "full_scans") >= 2, "full_scans");
	ok(sysfs("scan", "pages_scanned") >= 3 * N, "pages_scanned");

	/* A page that changes each time it is seen is no candidate. */
	need(!sysfs_write("scan", "sleep_millisecs", "100000"));
	order(&a, ORDER_FILL, at_a, 10, 900);
	order(&b, ORDER_FILL, at_b, 10, 900);
	need(!sysfs_write("scan", "pages_to_scan", "2000"));
	{
		int i;
		long long n_volatile = -1;

		/* Each write to the setting wakes the scanner for one turn: one full scan. */
		for (i = 1; i < 5; i++) {
			order(&a, ORDER_FILL, at_a, 10, 900 + 100 * i);
			order(&b, ORDER_FILL, at_b, 10, 900 + 100 * i);
			scanned = sysfs("scan", "full_scans");
			need(!sysfs_write("scan", "sleep_millisecs", "100000"));
			need(wait_scans("scan", scanned + 1));
			usleep(50000);
			n_volatile = sysfs("scan", "pages_volatile");
		}
		is(n_volatile, 20, "pages that change are volatile");
		is(frames_equal(a.pid, at_a, b.pid, at_b, 10), 0, "and not merged");
	}
	need(!sysfs_write("scan", "sleep_millisecs", "5"));
	ok(wait_for("scan", "pages_sharing", N), "when they stop changing, they are");

	/* Detaching. */
	is(error_of(ksm_detach(fd, a.pid, (void *)(at_a + 100 * PAGE), 100 * PAGE)), 0,
	   "a part in the middle is detached");
	is(counters_of(fd).n_ranges, 3, "which leaves two of it");
	is(sysfs("scan", "pages_sharing"), N, "what is merged stays merged");
	order(&a, ORDER_FILL, at_a + 100 * PAGE, 100, 40000);
	order(&b, ORDER_FILL, at_b + 100 * PAGE, 100, 40000);
	ok(wait_scans("scan", sysfs("scan", "full_scans") + 4), "it scans on");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N - 100, "but not there");
	is(error_of(ksm_attach(fd, a.pid, (void *)at_a, N * PAGE)), 0, "all of it is attached again");
	is(counters_of(fd).n_ranges, 2, "as one");
	ok(wait_for("scan", "pages_sharing", N), "and merged");

	/* Off and on. */
	allow(false);
	usleep(100000);
	scanned = sysfs("scan", "pages_scanned");
	usleep(300000);
	is(sysfs("scan", "pages_scanned"), scanned, "allow_merge=0 stops it");
	is(error_of(ksm_attach(fd, a.pid, (void *)at_a, PAGE)), EPERM, "and attaching");
	is(error_of(ksm_detach(fd, a.pid, (void *)at_a, PAGE)), 0, "but not detaching");
	allow(true);
	need(!ksm_attach(fd, a.pid, (void *)at_a, PAGE));
	ok(wait_scans("scan", sysfs("scan", "full_scans") + 2), "allow_merge=1 lets it go on");

	/* Exits. */
	target_kill(&a);
	usleep(100000);
	counters = counters_of(fd);
	is(counters.n_ranges, 1, "ranges of a process that is gone are dropped");
	is(counters.pages_sharing, 0, "and what it shared");
	is(order(&b, ORDER_CHECK, at_b, 10, 1300), 0, "the other process has its own content");
	need(!ksm_unlink("scan"));
	ok(!thread_runs("ksm/scan"), "unlink stops the thread");
	is(error_of(ksm_attach(fd, b.pid, (void *)at_b, PAGE)), EOPNOTSUPP, "which has no successor");
	counters = counters_of(fd);
	is(counters.n_ranges, 0, "nothing is attached to it");
	is(counters.flags, 0, "an unlinked partition with a scanner");
	is(counters.pages_shared, N, "what is merged stays merged");
	close(fd);
	target_kill(&b);

	/* Left with a running scanner: unloading stops it. */
	at_a = subject(&a, N, 1);
	fd = ksm_open("left-scanning", O_RDWR | KSM_CREAT, 0600);
	need(fd >= 0 && !ksm_attach(fd, a.pid, (void *)at_a, N * PAGE));
	close(fd);
	ok(thread_runs("ksm/left-scanning"), "a scanner needs no descriptor");
	ok(wait_for("left-scanning", "pages_unshared", N), "to work");
	return tap_done();
}
