/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of Selective KSM share. */
#ifndef PARTITION_TEST_H
#define PARTITION_TEST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "libksm.h"
#include "tap.h"

#define PARAMETERS	"/sys/module/ksm_planner/parameters/"
#define DIRECTORY	"/sys/kernel/mm/ksm/partition/"
#define RW_SYNC		(O_RDWR | KSM_SYNC)
#define NEW_SYNC	(RW_SYNC | KSM_CREAT | KSM_EXCL)
#define PFN_MASK	((1ULL << 55) - 1)

/* -1 with errno, or the result: for is(). */
#define error_of(call) ((call) < 0 ? errno : 0)

__attribute__((unused))
static void allow(bool is_allowed)
{
	need(write_to(PARAMETERS "allow_merge", is_allowed ? "1" : "0"));
}

/* A new synchronous partition. */
__attribute__((unused))
static int partition(const char *name)
{
	int fd = ksm_open(name, NEW_SYNC, 0600);

	need(fd >= 0);
	return fd;
}

__attribute__((unused))
static uint64_t refused_sum(const struct ksm_partition_counts *counts)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < KSM_PARTITION_REFUSED_MAX; i++)
		sum += counts->refused[i];
	return sum;
}

/* Whether the counts of a call account for every page. */
__attribute__((unused))
static bool adds_up(const struct ksm_partition_counts *counts)
{
	return counts->n_requested == counts->n_absent + counts->n_already + counts->n_merged +
	       counts->n_candidates + counts->n_volatile + counts->n_unmerged + refused_sum(counts);
}

__attribute__((unused))
static void counts_show(const struct ksm_partition_counts *counts)
{
	int i;

	diag("requested %llu absent %llu already %llu merged %llu candidates %llu volatile %llu "
	     "partners %llu unmerged %llu", counts->n_requested, counts->n_absent,
	     counts->n_already, counts->n_merged, counts->n_candidates, counts->n_volatile,
	     counts->n_partners, counts->n_unmerged);
	for (i = 0; i < KSM_PARTITION_REFUSED_MAX; i++)
		if (counts->refused[i])
			diag("refused[%d] %llu", i, counts->refused[i]);
}

/* Merges pages and checks that the counts add up; stops the test where the call fails. */
__attribute__((unused))
static struct ksm_partition_counts merge(int fd, pid_t pid, uint64_t address, size_t n_pages)
{
	struct ksm_partition_counts counts;

	memset(&counts, 0xff, sizeof(counts));
	need(!ksm_merge_counted(fd, pid, (void *)address, n_pages * PAGE, &counts));
	if (!adds_up(&counts) || counts.n_requested != n_pages ||
	    counts.walked_to != address + n_pages * PAGE || counts.n_killed) {
		ok(false, "the counts of a merge add up");
		counts_show(&counts);
	}
	return counts;
}

__attribute__((unused))
static struct ksm_partition_counts unmerge(int fd, pid_t pid, uint64_t address, size_t n_pages)
{
	struct ksm_partition_counts counts;

	memset(&counts, 0xff, sizeof(counts));
	need(!ksm_unmerge_counted(fd, pid, (void *)address, n_pages * PAGE, &counts));
	if (!adds_up(&counts) || counts.n_requested != n_pages || counts.n_merged) {
		ok(false, "the counts of an unmerge add up");
		counts_show(&counts);
	}
	return counts;
}

__attribute__((unused))
static struct ksm_partition_counters counters_of(int fd)
{
	struct ksm_partition_counters counters;

	need(!ksm_counters(fd, &counters));
	return counters;
}

/* Frame numbers of pages; 0 where there is none. */
__attribute__((unused))
static uint64_t *frames_of(pid_t pid, uint64_t address, size_t n_pages)
{
	uint64_t *entries = malloc(n_pages * sizeof(*entries));
	size_t i;

	need(entries && pagemap_read(pid, address, entries, n_pages) == n_pages);
	for (i = 0; i < n_pages; i++)
		entries[i] = entries[i] >> 63 ? entries[i] & PFN_MASK : 0;
	return entries;
}

static int frame_order(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How many different frames two sets of pages have in common; sorts both. */
__attribute__((unused))
static size_t frames_common(uint64_t *a, size_t n_a, uint64_t *b, size_t n_b)
{
	size_t i = 0, j = 0, n = 0;

	qsort(a, n_a, sizeof(*a), frame_order);
	qsort(b, n_b, sizeof(*b), frame_order);
	while (i < n_a && j < n_b) {
		if (!a[i] || a[i] < b[j]) {
			i++;
		} else if (!b[j] || b[j] < a[i]) {
			j++;
		} else {
			uint64_t frame = a[i];

			n++;
			while (i < n_a && a[i] == frame)
				i++;
			while (j < n_b && b[j] == frame)
				j++;
		}
	}
	return n;
}

/* How many different frames a set of pages has; sorts it. */
__attribute__((unused))
static size_t frames_distinct(uint64_t *frames, size_t n)
{
	size_t i, n_distinct = 0;

	qsort(frames, n, sizeof(*frames), frame_order);
	for (i = 0; i < n; i++)
		n_distinct += frames[i] && (!i || frames[i] != frames[i - 1]);
	return n_distinct;
}

/* Whether two processes have each page of a range on one frame. */
__attribute__((unused))
static size_t frames_equal(pid_t a, uint64_t at_a, pid_t b, uint64_t at_b, size_t n_pages)
{
	uint64_t *of_a = frames_of(a, at_a, n_pages), *of_b = frames_of(b, at_b, n_pages);
	size_t i, n = 0;

	for (i = 0; i < n_pages; i++)
		n += of_a[i] && of_a[i] == of_b[i];
	free(of_a);
	free(of_b);
	return n;
}

/* A counter of sysfs. */
__attribute__((unused))
static long long sysfs(const char *name, const char *file)
{
	char path[200];

	snprintf(path, sizeof(path), DIRECTORY "%s/%s", name, file);
	return number_in(path, NULL);
}

__attribute__((unused))
static int sysfs_write(const char *name, const char *file, const char *text)
{
	char path[200];
	int fd, ret;

	snprintf(path, sizeof(path), DIRECTORY "%s/%s", name, file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;
	ret = write(fd, text, strlen(text)) < 0 ? errno : 0;
	close(fd);
	return ret;
}

__attribute__((unused))
static bool sysfs_exists(const char *name)
{
	char path[200];

	snprintf(path, sizeof(path), DIRECTORY "%s", name);
	return !access(path, F_OK);
}

/*
 * A process that does what it is told. Numbers are shared[2] ...; what it finds out comes back in
 * shared[1].
 */
enum order {
	ORDER_NONE,
	ORDER_CHECK,	/* pages [2] to [2] + [3] have the contents [4], [4] + 1, ...: how many not */
	ORDER_FILL,	/* gives them these */
	ORDER_SAME,	/* gives all of them the content [4] */
	ORDER_MPROTECT,	/* [2], pages [3], protection [4] */
	ORDER_MREMAP,	/* moves pages [3] of [2] to a new place, returned */
	ORDER_MLOCK,
	ORDER_MUNLOCK,
	ORDER_MUNMAP,
	ORDER_MADVISE,	/* advice [4] */
	ORDER_MMAP,	/* pages [3], not huge; returns where */
	ORDER_FORK,	/* a child which is like this, writes to the pages; both check; 0 is right */
};

static uint64_t order_check(char *at, uint64_t n_pages, uint64_t number)
{
	static uint64_t expected[512];
	uint64_t i, n_bad = 0;

	for (i = 0; i < n_pages; i++) {
		fill(expected, number + i);
		n_bad += !!memcmp(at + i * PAGE, expected, PAGE);
	}
	return n_bad;
}

__attribute__((unused))
static void obey(uint64_t *shared)
{
	for (;;) {
		char *at;
		uint64_t n, i;

		target_wait();
		at = (char *)shared[2];
		n = shared[3];
		switch ((enum order)shared[0]) {
		case ORDER_CHECK:
			shared[1] = order_check(at, n, shared[4]);
			break;
		case ORDER_FILL:
		case ORDER_SAME:
			for (i = 0; i < n; i++)
				fill(at + i * PAGE, shared[4] + (shared[0] == ORDER_FILL ? i : 0));
			break;
		case ORDER_MPROTECT:
			shared[1] = mprotect(at, n * PAGE, shared[4]) ? errno : 0;
			break;
		case ORDER_MREMAP: {
			char *to = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			shared[1] = (uintptr_t)mremap(at, n * PAGE, n * PAGE,
						      MREMAP_MAYMOVE | MREMAP_FIXED, to);
			break;
		}
		case ORDER_MLOCK:
			shared[1] = mlock(at, n * PAGE) ? errno : 0;
			break;
		case ORDER_MUNLOCK:
			shared[1] = munlock(at, n * PAGE) ? errno : 0;
			break;
		case ORDER_MUNMAP:
			shared[1] = munmap(at, n * PAGE) ? errno : 0;
			break;
		case ORDER_MADVISE:
			shared[1] = madvise(at, n * PAGE, shared[4]) ? errno : 0;
			break;
		case ORDER_MMAP:
			shared[1] = (uintptr_t)anon(n * PAGE);
			break;
		case ORDER_FORK: {
			pid_t pid = fork();
			int status = -1;

			if (!pid) {
				uint64_t n_bad = order_check(at, n, shared[4]);

				for (i = 0; i < n; i++)
					fill(at + i * PAGE, 1ULL << 40 | i);
				n_bad += order_check(at, n, 1ULL << 40);
				_exit(n_bad ? 1 : 0);
			}
			waitpid(pid, &status, 0);
			shared[1] = status + order_check(at, n, shared[4]);
			break;
		}
		case ORDER_NONE:
			break;
		}
	}
}

/* Gives an order and returns what came back. */
__attribute__((unused))
static uint64_t order(struct target *target, enum order what, uint64_t at, uint64_t n, uint64_t more)
{
	target->shared[0] = what;
	target->shared[1] = 0;
	target->shared[2] = at;
	target->shared[3] = n;
	target->shared[4] = more;
	target_go(target);
	return target->shared[1];
}

/* A process that obeys, with pages of the contents number, number + 1, ...; returns where. */
__attribute__((unused))
static uint64_t subject(struct target *target, size_t n_pages, uint64_t number)
{
	uint64_t at;

	target_start(target, obey);
	at = order(target, ORDER_MMAP, 0, n_pages, 0);
	order(target, ORDER_FILL, at, n_pages, number);
	return at;
}

#endif
