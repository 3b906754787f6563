// SPDX-License-Identifier: GPL-2.0
/*
 * Merging and unmerging: content, frames, privacy of writes, what processes do to merged memory, and
 * that no frame is ever in two partitions.
 */
#define _GNU_SOURCE
#include <sys/wait.h>

#include "partition.h"

#define N	1000
/* Free memory is what it is to within this many pages: lists of each CPU, slabs, page tables. */
#define NOISE	400

static void show_costs(const char *what, const struct ksm_partition_counts *counts)
{
	static const char *const names[] = { "walk", "hash", "compare", "copy", "merge", "refuse",
					     "unmerge" };
	int i;

	for (i = 0; i < KSM_PARTITION_COST_N; i++)
		if (counts->cost_n[i])
			diag("cost %s: %s %llu ns each, %llu times", what, names[i],
			     counts->cost_ns[i] / counts->cost_n[i], counts->cost_n[i]);
	diag("cost %s: call %llu ns for each of %llu pages", what,
	     counts->total_ns / counts->n_requested, counts->n_requested);
}

static long long free_pages(void)
{
	return number_in("/proc/meminfo", "MemFree:") / 4;
}

static void test_two_processes(void)
{
	struct ksm_partition_counts counts;
	struct ksm_partition_counters counters;
	struct target a, b;
	uint64_t at_a, at_b;
	long long before, saved;
	int fd = partition("two");

	at_a = subject(&a, N, 5000);
	at_b = subject(&b, N, 5000);
	before = free_pages();
	counts = merge(fd, a.pid, at_a, N);
	is(counts.n_candidates, N, "pages of the first process become candidates");
	is(counts.n_merged, 0, "and none is merged");
	counters = counters_of(fd);
	is(counters.pages_unshared, N, "pages_unshared counts them");
	is(counters.pages_shared, 0, "pages_shared is 0");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), 0, "no frame is shared");

	counts = merge(fd, b.pid, at_b, N);
	is(counts.n_merged, N, "all pages of the second are merged");
	is(counts.n_partners, N, "with those of the first");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "each pair is on one frame");
	show_costs("merge", &counts);
	saved = free_pages() - before;
	ok(saved > N - NOISE && saved < N + NOISE, "%d frames are free again (%lld)", N, saved);
	counters = counters_of(fd);
	is(counters.pages_shared, N, "pages_shared");
	is(counters.pages_sharing, N, "pages_sharing");
	is(counters.pages_unshared, 0, "pages_unshared");
	is(counters.calls, 2, "calls");
	is(counters.n_merged, 2 * N, "pages merged in all");
	is(counters.pages_scanned, 2 * N, "pages_scanned");
	is(sysfs("two", "pages_shared"), N, "sysfs has the same pages_shared");
	is(sysfs("two", "pages_sharing"), N, "and pages_sharing");
	is(order(&a, ORDER_CHECK, at_a, N, 5000), 0, "the content of the first is what it was");
	is(order(&b, ORDER_CHECK, at_b, N, 5000), 0, "and of the second");
	ok(number_of(a.pid, "status", "RssFile:") >= N * 4, "merged memory counts as RssFile");

	counts = merge(fd, a.pid, at_a, N);
	is(counts.n_already, N, "merging again finds nothing to do");

	/* Writes. */
	order(&a, ORDER_FILL, at_a, 1, 77);
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N - 1, "a write parts one page");
	is(order(&a, ORDER_CHECK, at_a, 1, 77), 0, "the writer sees it");
	is(order(&b, ORDER_CHECK, at_b, N, 5000), 0, "the other does not");
	counts = merge(fd, a.pid, at_a, N);
	is(counts.n_already, N - 1, "the others are still merged");
	is(counts.n_candidates, 1, "and the changed one waits");
	order(&a, ORDER_FILL, at_a, 1, 5000);
	counts = merge(fd, a.pid, at_a, 1);
	is(counts.n_merged, 1, "written back, it is merged again");
	is(counts.n_partners, 0, "with the frame that the other one has kept");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "all pairs are on one frame");

	/* Unmerging. */
	before = free_pages();
	counts = unmerge(fd, a.pid, at_a, N);
	is(counts.n_unmerged, N, "all are unmerged");
	show_costs("unmerge", &counts);
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), 0, "no frame is shared");
	saved = before - free_pages();
	ok(saved > N - NOISE && saved < N + NOISE, "that takes %d frames (%lld)", N, saved);
	is(order(&a, ORDER_CHECK, at_a, N, 5000), 0, "with the content of before");
	counters = counters_of(fd);
	is(counters.pages_shared, N, "frames with one mapping left");
	is(counters.pages_sharing, 0, "save nothing");
	counts = unmerge(fd, a.pid, at_a, N);
	is(counts.n_unmerged, 0, "unmerging again finds nothing to do");
	is(counts.n_already, N, "and says so");

	/* Exits. */
	merge(fd, a.pid, at_a, N);
	is(counters_of(fd).pages_sharing, N, "merged once more");
	target_kill(&a);
	counters = counters_of(fd);
	is(counters.pages_shared, N, "after an exit the frames are the other's");
	is(counters.pages_sharing, 0, "alone");
	is(order(&b, ORDER_CHECK, at_b, N, 5000), 0, "which has its content");
	target_kill(&b);
	counters = counters_of(fd);
	is(counters.pages_shared, 0, "after the last exit nothing is shared");
	is(counters.pages_sharing, 0, "pages_sharing is 0");
	is(counters.pages_unshared, 0, "pages_unshared is 0");
	close(fd);
	need(!ksm_unlink("two"));
}

/* Equal pages within one call. */
static void test_one_process(void)
{
	struct ksm_partition_counts counts;
	int fd = partition("one");
	struct target a;
	uint64_t at, *frames;

	at = subject(&a, N, 100);
	order(&a, ORDER_SAME, at, N / 2, 1);
	counts = merge(fd, a.pid, at, N);
	is(counts.n_candidates, 1 + N / 2, "one of the equal pages, and all others, are candidates");
	is(counts.n_merged, N / 2 - 1, "the rest of the equal ones are merged");
	is(counts.n_partners, 1, "with the first");
	frames = frames_of(a.pid, at, N / 2);
	is(frames_distinct(frames, N / 2), 1, "and are on one frame");
	free(frames);
	is(counters_of(fd).pages_sharing, N / 2 - 1, "pages_sharing");

	/* A page of zeros is like any other. */
	order(&a, ORDER_MADVISE, at, N, MADV_DONTNEED);
	memset((void *)a.shared + 64, 0, 8);
	counts = merge(fd, a.pid, at, N);
	is(counts.n_absent, N, "pages that were thrown away are absent");
	is(counters_of(fd).pages_shared, 0, "their frame is gone");

	/* The caller's own memory; ranges of holes. */
	{
		char *own = anon(64 * PAGE);
		int i;

		for (i = 0; i < 64; i++)
			memset(own + i * PAGE, i % 2, PAGE);
		counts = merge(fd, getpid(), (uintptr_t)own, 64);
		is(counts.n_merged, 62, "a process merges its own memory");
		for (i = 0; i < 64; i++)
			if (own[i * PAGE] != i % 2 || memcmp(own + i * PAGE, own + i * PAGE + 1, PAGE - 1))
				break;
		is(i, 64, "and sees no difference");
		munmap(own, 64 * PAGE);
	}
	need(!ksm_merge_counted(fd, a.pid, NULL, 1UL << 47, &counts));
	ok(adds_up(&counts), "the counts of a whole address space add up");
	is(counts.n_requested, (1UL << 47) / PAGE, "it is walked to its end");
	need(!ksm_merge_counted(fd, a.pid, (void *)(1UL << 62), 3UL << 62, &counts));
	is(counts.n_absent, (3UL << 62) / PAGE, "above it there is nothing, up to 2^64");
	is(order(&a, ORDER_CHECK, at, 0, 0), 0, "the process is well");
	target_kill(&a);
	close(fd);
	need(!ksm_unlink("one"));
}

/* The same content in two partitions is on two frames. */
static void test_partitions_are_apart(void)
{
	struct ksm_partition_counts counts;
	int red = partition("red"), blue = partition("blue");
	uint64_t at[4], *frames[2], *all[4];
	struct target targets[4];
	int i;

	for (i = 0; i < 4; i++)
		at[i] = subject(&targets[i], N, 9000);
	for (i = 0; i < 4; i++)
		counts = merge(i % 2 ? blue : red, targets[i].pid, at[i], N);
	is(counts.n_merged, N, "two processes of each partition are merged");
	is(frames_equal(targets[0].pid, at[0], targets[2].pid, at[2], N), N, "red shares with red");
	is(frames_equal(targets[1].pid, at[1], targets[3].pid, at[3], N), N, "blue with blue");
	for (i = 0; i < 4; i++)
		all[i] = frames_of(targets[i].pid, at[i], N);
	frames[0] = malloc(2 * N * 8);
	frames[1] = malloc(2 * N * 8);
	for (i = 0; i < 4; i++)
		memcpy(frames[i % 2] + i / 2 * N, all[i], N * 8);
	is(frames_common(frames[0], 2 * N, frames[1], 2 * N), 0, "no frame is in both");
	is(frames_distinct(frames[0], 2 * N) + frames_distinct(frames[1], 2 * N), 2 * N,
	   "each has its own %d", N);

	counts = merge(blue, targets[0].pid, at[0], N);
	is(counts.refused[KSM_PARTITION_REFUSED_FOREIGN], N,
	   "what is merged in one partition is refused by the other");
	counts = unmerge(blue, targets[0].pid, at[0], N);
	is(counts.refused[KSM_PARTITION_REFUSED_FOREIGN], N, "and is not unmerged by it either");
	is(frames_equal(targets[0].pid, at[0], targets[2].pid, at[2], N), N, "it stays as it was");

	/* From red to blue. */
	is(unmerge(red, targets[0].pid, at[0], N).n_unmerged, N, "unmerged in its own");
	is(merge(blue, targets[0].pid, at[0], N).n_merged, N, "it can be merged in the other");
	is(frames_equal(targets[0].pid, at[0], targets[1].pid, at[1], N), N, "and shares there");
	is(frames_equal(targets[0].pid, at[0], targets[2].pid, at[2], N), 0, "and no longer here");

	/* An unlinked partition, and another one of its name. */
	need(!ksm_unlink("red"));
	is(merge(red, targets[2].pid, at[2], N).n_already, N, "an unlinked partition goes on");
	{
		int again = partition("red");

		counts = merge(again, targets[2].pid, at[2], N);
		is(counts.refused[KSM_PARTITION_REFUSED_FOREIGN], N, "its name is another partition now");
		close(red);
		counts = merge(again, targets[2].pid, at[2], N);
		is(counts.refused[KSM_PARTITION_REFUSED_FOREIGN], N,
		   "when it is gone, its frames are nobody's");
		is(order(&targets[2], ORDER_CHECK, at[2], N, 9000), 0, "with their content");
		order(&targets[2], ORDER_FILL, at[2], N, 9000);
		is(merge(again, targets[2].pid, at[2], N).n_candidates, N,
		   "until they are written to");
		close(again);
	}
	for (i = 0; i < 4; i++)
		is(order(&targets[i], ORDER_CHECK, at[i], N, 9000), 0, "content of process %d", i);
	for (i = 0; i < 4; i++) {
		target_kill(&targets[i]);
		free(all[i]);
	}
	free(frames[0]);
	free(frames[1]);
	close(blue);
	need(!ksm_unlink("red"));
	need(!ksm_unlink("blue"));
}

/* What a process may do to merged memory. */
static void test_life(void)
{
	struct target a, b;
	uint64_t at_a, at_b, moved;
	int fd = partition("life");

	at_a = subject(&a, N, 300);
	at_b = subject(&b, N, 300);
	merge(fd, a.pid, at_a, N);
	is(merge(fd, b.pid, at_b, N).n_merged, N, "merged");

	is(order(&a, ORDER_FORK, at_a, N, 300), 0, "a forked child reads the content, writes its own");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "its parent's stays merged");

	is(order(&a, ORDER_MPROTECT, at_a, N, PROT_READ), 0, "mprotect to read only");
	is(frames_equal(a.pid, at_a, b.pid, at_b, N), N, "keeps what is merged");
	is(order(&a, ORDER_CHECK, at_a, N, 300), 0, "and its content");
	is(order(&a, ORDER_MPROTECT, at_a, N, PROT_NONE), 0, "mprotect to none");
	is(unmerge(fd, a.pid, at_a, N / 2).n_unmerged, N / 2, "memory without access is unmerged");
	is(merge(fd, a.pid, at_a, N / 2).n_merged, N / 2, "and merged");
	is(order(&a, ORDER_MPROTECT, at_a, N, PROT_READ | PROT_WRITE), 0, "mprotect back");
	is(order(&a, ORDER_CHECK, at_a, N, 300), 0, "the content is there");
	order(&a, ORDER_FILL, at_a, 10, 400);
	is(order(&a, ORDER_CHECK, at_a, 10, 400), 0, "and can be written");
	is(order(&b, ORDER_CHECK, at_b, N, 300), 0, "by nobody else");
	order(&a, ORDER_FILL, at_a, 10, 300);
	merge(fd, a.pid, at_a, 10);

	is(order(&a, ORDER_MPROTECT, at_a, N, PROT_READ), 0, "a mapping that may not be written");
	is(unmerge(fd, a.pid, at_a, N).n_unmerged, N, "is unmerged");
	is(merge(fd, a.pid, at_a, N).n_merged, N, "and merged");
	is(order(&a, ORDER_MPROTECT, at_a, N, PROT_READ | PROT_WRITE), 0, "mprotect back");

	moved = order(&a, ORDER_MREMAP, at_a, N, 0);
	ok((long long)moved > 0, "mremap");
	is(frames_equal(a.pid, moved, b.pid, at_b, N), N, "takes the frames along");
	is(order(&a, ORDER_CHECK, moved, N, 300), 0, "and the content");
	is(merge(fd, a.pid, moved, N).n_already, N, "the partition knows them");

	is(order(&a, ORDER_MLOCK, moved, N, 0), 0, "mlock");
	is(number_of(a.pid, "status", "VmLck:"), N * 4, "locks all of it");
	is(frames_equal(a.pid, moved, b.pid, at_b, N), 0, "which unmerges it");
	is(order(&a, ORDER_CHECK, moved, N, 300), 0, "with the content");
	is(merge(fd, a.pid, moved, N).refused[KSM_PARTITION_REFUSED_LOCKED], N,
	   "locked memory is refused");
	is(order(&a, ORDER_MUNLOCK, moved, N, 0), 0, "munlock");
	is(merge(fd, a.pid, moved, N).n_merged, N, "and it is merged again");

	is(order(&a, ORDER_MADVISE, moved, N / 2, MADV_DONTNEED), 0, "half of it is thrown away");
	is(counters_of(fd).pages_sharing, N - N / 2, "pages_sharing follows");
	is(order(&a, ORDER_MUNMAP, moved, N, 0), 0, "and all of it unmapped");
	is(counters_of(fd).pages_sharing, 0, "pages_sharing follows");
	is(order(&b, ORDER_CHECK, at_b, N, 300), 0, "the other has its content");
	is(counters_of(fd).pages_shared, N, "and its frames");
	target_kill(&a);
	target_kill(&b);
	close(fd);
	need(!ksm_unlink("life"));
}

/* Many rounds lose nothing. */
static void test_no_leak(void)
{
	long long before = 0, after;
	struct target a, b;
	uint64_t at_a, at_b;
	int fd = partition("leak"), i;

	for (i = 0; i < 12; i++) {
		/* Other contents each time: an equal one would take the place of what is left. */
		at_a = subject(&a, N, (i + 1) * 100000);
		at_b = subject(&b, N, (i + 1) * 100000);
		merge(fd, a.pid, at_a, N);
		merge(fd, b.pid, at_b, N);
		unmerge(fd, a.pid, at_a, N / 2);
		target_kill(&a);
		target_kill(&b);
		counters_of(fd);
		if (i == 3)
			before = free_pages();
	}
	after = free_pages();
	ok(after > before - NOISE, "no memory is lost (%lld pages in 8 rounds of %d)",
	   before - after, 2 * N);
	close(fd);
	need(!ksm_unlink("leak"));
}

int main(void)
{
	allow(true);
	test_two_processes();
	test_one_process();
	test_partitions_are_apart();
	test_life();
	test_no_leak();
	allow(false);
	return tap_done();
}
