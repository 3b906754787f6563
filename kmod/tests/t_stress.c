// SPDX-License-Identifier: GPL-2.0
/*
 * Four dumps at once under memory pressure, on two CPUs: targets together are larger than memory, so
 * that they are swapped to zram all the time; KSM merges, khugepaged collapses, memory is compacted.
 * Some pages of each target never change: their hash must be right wherever they are found.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define N_TARGETS	4
#define N_STABLE	4096	/* 16 MiB */
#define N_CHURN		22528	/* 88 MiB */
#define SECONDS		12

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/*
 * Stable pages: the first half is equal in all targets, so that KSM merges it; the second half is
 * this one's own and may be collapsed to huge pages.
 */
static uint64_t stable_number(int target, int i)
{
	return i < N_STABLE / 2 ? 700000 + i : 800000 + target * N_STABLE + i;
}

static int number;

static void work(uint64_t *shared)
{
	char *stable = anon_huge(N_STABLE * PAGE), *churn;
	int i, n;

	need(!madvise(stable, N_STABLE / 2 * PAGE, MADV_NOHUGEPAGE));
	need(!madvise(stable, N_STABLE / 2 * PAGE, MADV_MERGEABLE));
	for (i = 0; i < N_STABLE; i++)
		fill(stable + i * PAGE, stable_number(number, i));
	/* A huge page that stays one: it can be moved, but not swapped. */
	need(!mlock(stable + N_STABLE * 3 / 4 * PAGE, HUGE));
	churn = mmap(NULL, N_CHURN * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(churn != MAP_FAILED);
	madvise(churn, N_CHURN / 2 * PAGE, MADV_MERGEABLE);
	madvise(churn + N_CHURN / 2 * PAGE, N_CHURN / 2 * PAGE, MADV_HUGEPAGE);
	shared[0] = (uintptr_t)stable;
	target_wait();
	signal(SIGCHLD, SIG_IGN);
	for (srand(number), n = 0;; n++, shared[1] = n) {
		switch (n % 64) {
		case 17:
			madvise(stable + N_STABLE / 2 * PAGE, N_STABLE / 4 * PAGE, 21);
			break;
		case 33:
			madvise(churn + rand() % N_CHURN / 2 * PAGE, N_CHURN / 4 * PAGE,
				MADV_DONTNEED);
			break;
		case 49:
			/* Shares everything for a moment, and unshares by writing. */
			if (!fork()) {
				for (i = 0; i < 512; i++)
					churn[rand() % N_CHURN * PAGE] = i;
				_exit(0);
			}
			break;
		case 53:
			/* Back into huge pages, as far as there is memory for it. */
			madvise(stable + N_STABLE / 2 * PAGE, N_STABLE / 4 * PAGE, 25);
			break;
		default:
			for (i = 0; i < 16; i++)
				shared[2] += stable[rand() % N_STABLE * PAGE];
			for (i = 0; i < 256; i++)
				fill(churn + rand() % N_CHURN * PAGE, rand() % 64);
		}
	}
}

struct result {
	uint64_t n_dumps, n_pages, n_checked, n_swapped, n_merged, n_huge, n_migrating, n_wrong, n_bad;
};

/* One dumper: all targets by turns, and the form and the stable pages of each dump. */
static void dump_all(struct target *targets, struct result *result, double end)
{
	struct pagehash_start start;
	int which = rand() % N_TARGETS, fd, i;

	while (seconds() < end) {
		uint64_t stable = targets[which].shared[0];
		struct dump dump;
		uint8_t *bytes;
		size_t n_bytes;

		start_of(&start, targets[which].pid);
		fd = dump_open(&start);
		if (fd < 0 || read_all(fd, 1 + rand() % 100000, &bytes, &n_bytes)) {
			result->n_bad++;
			return;
		}
		close(fd);
		if (dump_parse(bytes, n_bytes, &dump) || dump.trailer->status) {
			result->n_bad++;
			return;
		}
		for (i = 0; i < (int)dump.n_pages; i++)
			result->n_huge += !!(dump.pages[i].flags & PAGEHASH_PAGE_THP);
		for (i = 0; i < N_STABLE; i++) {
			const struct pagehash_page *page = dump_page(&dump, stable + i * PAGE);

			if (!page) {
				result->n_wrong++;
				continue;
			}
			result->n_swapped += !!(page->flags & PAGEHASH_PAGE_SWAPPED);
			result->n_migrating += !!(page->flags & PAGEHASH_PAGE_MIGRATION);
			result->n_merged += !!(page->flags & PAGEHASH_PAGE_KSM);
			if (page->flags & PAGEHASH_PAGE_NO_HASH)
				continue;
			/* Hashing is slow here: one in eight, not always the same. */
			if ((i + result->n_dumps) % 8)
				continue;
			result->n_checked++;
			result->n_wrong += page->hash != hash_of(stable_number(which, i));
		}
		result->n_dumps++;
		result->n_pages += dump.n_pages;
		dump_free(&dump);
		which = (which + 1) % N_TARGETS;
	}
}

int main(void)
{
	struct target targets[N_TARGETS];
	struct result *results, sum = { 0 };
	pid_t dumpers[4];
	uint64_t n_rounds = 0;
	double end;
	int i, status;

	results = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(results != MAP_FAILED);
	write_to("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "20");
	write_to("/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs", "20");
	write_to("/sys/kernel/mm/ksm/pages_to_scan", "2000");
	write_to("/sys/kernel/mm/ksm/sleep_millisecs", "5");
	write_to("/sys/kernel/mm/ksm/run", "1");
	for (number = 0; number < N_TARGETS; number++)
		target_start(&targets[number], work);
	for (i = 0; i < N_TARGETS; i++)
		diag("target %d: %lld KiB resident, %lld KiB in huge pages", i,
		     number_of(targets[i].pid, "smaps_rollup", "Rss:"),
		     number_of(targets[i].pid, "smaps_rollup", "AnonHugePages:"));
	for (i = 0; i < N_TARGETS; i++)
		target_release(&targets[i]);
	end = seconds() + SECONDS;
	fflush(stdout);
	for (i = 0; i < 4; i++) {
		dumpers[i] = fork();
		need(dumpers[i] >= 0);
		if (!dumpers[i]) {
			srand(i);
			dump_all(targets, &results[i], end);
			_exit(0);
		}
	}
	while (seconds() < end) {
		usleep(500000);
		write_to("/proc/sys/vm/compact_memory", "1");
	}
	for (i = 0; i < 4; i++) {
		need(waitpid(dumpers[i], &status, 0) == dumpers[i]);
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			sum.n_bad++;
		sum.n_dumps += results[i].n_dumps;
		sum.n_pages += results[i].n_pages;
		sum.n_checked += results[i].n_checked;
		sum.n_swapped += results[i].n_swapped;
		sum.n_merged += results[i].n_merged;
		sum.n_huge += results[i].n_huge;
		sum.n_migrating += results[i].n_migrating;
		sum.n_wrong += results[i].n_wrong;
		sum.n_bad += results[i].n_bad;
	}
	write_to("/sys/kernel/mm/ksm/run", "0");
	for (i = 0; i < N_TARGETS; i++) {
		n_rounds += targets[i].shared[1];
		ok(!kill(targets[i].pid, 0) && !waitpid(targets[i].pid, &status, WNOHANG),
		   "target %d lives", i);
		target_kill(&targets[i]);
	}
	diag("%llu dumps of %llu pages while targets made %llu rounds",
	     (unsigned long long)sum.n_dumps, (unsigned long long)sum.n_pages,
	     (unsigned long long)n_rounds);
	diag("stable pages met: %llu swapped, %llu merged, %llu migrating; %llu huge pages of all",
	     (unsigned long long)sum.n_swapped, (unsigned long long)sum.n_merged,
	     (unsigned long long)sum.n_migrating, (unsigned long long)sum.n_huge);
	is(sum.n_bad, 0, "all dumps are whole and well formed");
	is(sum.n_wrong, 0, "stable pages are all listed, and %llu hashes of them are right",
	   (unsigned long long)sum.n_checked);
	ok(sum.n_dumps >= 8 && sum.n_checked > 1000, "there were enough of both");
	ok(sum.n_swapped > 0, "some were swapped");
	ok(sum.n_merged > 0, "some were merged");
	ok(sum.n_huge > 0, "some were huge");
	return tap_done();
}
