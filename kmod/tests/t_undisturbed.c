// SPDX-License-Identifier: GPL-2.0
/*
 * A dump changes nothing: resident size, faults, accessed bits, huge mappings, swap, KSM sharing.
 * For each there is a control: something else that does change it, so that the check can fail.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum { AT_ANON, AT_THP, AT_KSM, AT_SWAP, AT_HOLE, AT_FORK };

#define N_ANON	512
#define N_KSM	64
#define N_SWAP	128

static void work(uint64_t *shared)
{
	volatile char *pages;
	volatile char sum = 0;
	char *at;
	int i, j;

	at = anon(N_ANON * PAGE);
	for (i = 0; i < N_ANON; i++)
		fill(at + i * PAGE, i);
	shared[AT_ANON] = (uintptr_t)at;
	at = anon_huge(2 * HUGE);
	for (i = 0; i < 1024; i++)
		fill(at + i * PAGE, 1000 + i);
	shared[AT_THP] = (uintptr_t)at;
	for (j = 0; j < 3; j++) {
		at = anon(N_KSM * PAGE);
		for (i = 0; i < N_KSM; i++)
			fill(at + i * PAGE, 3000 + i);
		need(!madvise(at, N_KSM * PAGE, MADV_MERGEABLE));
		shared[AT_KSM] = (uintptr_t)at;
	}
	at = anon(N_SWAP * PAGE);
	for (i = 0; i < N_SWAP; i++)
		fill(at + i * PAGE, 4000 + i);
	need(!madvise(at, N_SWAP * PAGE, MADV_PAGEOUT));
	shared[AT_SWAP] = (uintptr_t)at;
	shared[AT_HOLE] = (uintptr_t)anon(N_ANON * PAGE);
	target_wait();

	/* For the controls. */
	pages = (char *)shared[AT_ANON];
	for (i = 0; i < 8; i++)
		sum += pages[i * PAGE];
	pages = (char *)shared[AT_KSM];
	pages[0]++;
}

static const struct {
	const char *file, *label, *what;
} process_numbers[] = {
	{ "status", "VmRSS:", "resident size" },
	{ "status", "RssAnon:", "anonymous resident size" },
	{ "status", "VmSwap:", "swapped size" },
	{ "status", "VmPTE:", "size of page tables" },
	{ "smaps_rollup", "Anonymous:", "anonymous size" },
	{ "smaps_rollup", "AnonHugePages:", "huge mappings" },
	{ "smaps_rollup", "Swap:", "swap" },
	{ "smaps_rollup", "Locked:", "locked size" },
};

static const struct {
	const char *file, *label, *what;
} machine_numbers[] = {
	{ "/sys/kernel/mm/ksm/pages_sharing", NULL, "pages_sharing" },
	{ "/sys/kernel/mm/ksm/pages_shared", NULL, "pages_shared" },
	{ "/proc/vmstat", "cow_ksm ", "cow_ksm" },
	{ "/proc/vmstat", "ksm_swpin_copy ", "ksm_swpin_copy" },
	{ "/proc/vmstat", "pswpin ", "pages swapped in" },
	{ "/proc/vmstat", "thp_split_page ", "huge pages split" },
	{ "/proc/vmstat", "thp_split_pmd ", "huge mappings split" },
};

#define N_PROCESS	(sizeof(process_numbers) / sizeof(*process_numbers))
#define N_MACHINE	(sizeof(machine_numbers) / sizeof(*machine_numbers))

static void look(pid_t pid, long long *process, long long *machine)
{
	size_t i;

	for (i = 0; i < N_PROCESS; i++)
		process[i] = number_of(pid, process_numbers[i].file, process_numbers[i].label);
	for (i = 0; i < N_MACHINE; i++)
		machine[i] = number_in(machine_numbers[i].file, machine_numbers[i].label);
}

/* Faults of a process, minor and major. */
static long long faults_of(pid_t pid)
{
	long long minor, major;
	char path[64], text[512], *at;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY);
	need(fd >= 0);
	memset(text, 0, sizeof(text));
	need(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	at = strrchr(text, ')');
	need(at && sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %lld %*u %lld", &minor, &major) == 2);
	return minor + major;
}

static long long referenced_of(pid_t pid)
{
	return number_of(pid, "smaps_rollup", "Referenced:");
}

/* Reads memory as a debugger does, through /proc/PID/mem. */
static void read_memory(pid_t pid, uint64_t address, int n)
{
	char path[64], page[PAGE];
	int i, fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	need(fd >= 0);
	for (i = 0; i < n; i++)
		need(pread(fd, page, PAGE, address + i * PAGE) == (ssize_t)PAGE);
	close(fd);
}

int main(void)
{
	long long process[2][N_PROCESS], machine[2][N_MACHINE], faults;
	uint64_t before[N_ANON], after[N_ANON];
	const struct pagehash_page *page;
	struct target target;
	char path[64];
	struct dump dump;
	size_t i;
	int n;

	target_start(&target, work);
	/* Of a test before this one, KSM may still count pages of processes that are gone. */
	write_to("/sys/kernel/mm/ksm/run", "2");
	write_to("/sys/kernel/mm/ksm/pages_to_scan", "10000");
	write_to("/sys/kernel/mm/ksm/sleep_millisecs", "5");
	write_to("/sys/kernel/mm/ksm/run", "1");
	for (i = 0; i < 200 && number_in("/sys/kernel/mm/ksm/pages_sharing", NULL) < 2 * N_KSM; i++)
		usleep(50000);
	write_to("/sys/kernel/mm/ksm/run", "0");
	is(number_in("/sys/kernel/mm/ksm/pages_sharing", NULL), 2 * N_KSM, "KSM has merged");
	is(number_of(target.pid, "status", "VmSwap:"), N_SWAP * 4, "pages are in swap");
	is(number_of(target.pid, "smaps_rollup", "AnonHugePages:"), 4096, "huge pages are mapped");

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", target.pid);
	need(write_to(path, "1"));
	is(referenced_of(target.pid), 0, "accessed bits are clear");
	look(target.pid, process[0], machine[0]);
	faults = faults_of(target.pid);
	need(pagemap_read(target.pid, target.shared[AT_ANON], before, N_ANON) == N_ANON);

	for (n = 0; n < 3; n++) {
		dump_take(&dump, target.pid, n == 2 ? PAGEHASH_START_NO_HASH : 0);
		ok(dump.n_pages > N_ANON + 1024 + 3 * N_KSM + N_SWAP && dump.trailer->status == 0,
		   "dump %d: %zu pages", n, dump.n_pages);
		page = dump_page(&dump, target.shared[AT_THP] + 700 * PAGE);
		ok(page && page->flags & PAGEHASH_PAGE_THP && !(page->flags & PAGEHASH_PAGE_YOUNG),
		   "dump %d: a huge page, not accessed", n);
		ok(!dump_page(&dump, target.shared[AT_HOLE]), "dump %d: nothing where nothing is", n);
		dump_free(&dump);
	}

	is(referenced_of(target.pid), 0, "no accessed bit was set");
	is(faults_of(target.pid), faults, "no page was faulted in");
	look(target.pid, process[1], machine[1]);
	for (i = 0; i < N_PROCESS; i++) {
		ok(process[0][i] >= 0, "%s can be read", process_numbers[i].what);
		is(process[1][i], process[0][i], "unchanged: %s", process_numbers[i].what);
	}
	for (i = 0; i < N_MACHINE; i++) {
		/* The numbers of 6.1 lack some of 6.12's. */
		if (machine[0][i] < 0)
			skip(machine_numbers[i].what, "this kernel does not count it");
		else
			is(machine[1][i], machine[0][i], "unchanged: %s", machine_numbers[i].what);
	}
	need(pagemap_read(target.pid, target.shared[AT_ANON], after, N_ANON) == N_ANON);
	ok(!memcmp(before, after, sizeof(before)), "unchanged: frames, soft-dirty and exclusive bits");

	/* Controls: each of these numbers does move when something happens. */
	target_go(&target);
	ok(referenced_of(target.pid) > 0, "control: an access is seen");
	ok(faults_of(target.pid) > faults, "control: a fault is seen");
	ok(number_in("/proc/vmstat", "cow_ksm ") > machine[0][2], "control: cow_ksm moves");
	for (n = 0; n < 2; n++) {
		dump_take(&dump, target.pid, 0);
		page = dump_page(&dump, target.shared[AT_ANON] + 3 * PAGE);
		ok(page && page->flags & PAGEHASH_PAGE_YOUNG, "dump %d sees an accessed bit", n);
		page = dump_page(&dump, target.shared[AT_ANON] + 9 * PAGE);
		ok(page && !(page->flags & PAGEHASH_PAGE_YOUNG), "dump %d sees none", n);
		dump_free(&dump);
	}
	read_memory(target.pid, target.shared[AT_SWAP], N_SWAP);
	ok(number_of(target.pid, "status", "VmSwap:") < N_SWAP * 4,
	   "control: reading through /proc/PID/mem brings pages in");
	target_kill(&target);
	return tap_done();
}
