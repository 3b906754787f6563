// SPDX-License-Identifier: GPL-2.0
/* What is not merged, by reason; the limit of pages; who is charged; and signals. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "partition.h"

#define N	64

static int fd;
static char *at;	/* N pages, each twice */

static struct ksm_partition_counts merge_own(void *address, size_t n_pages)
{
	return merge(fd, getpid(), (uintptr_t)address, n_pages);
}

#define refusal(name) refused[KSM_PARTITION_REFUSED_##name]

/* Private memory of pages that would merge. */
static char *pairs(size_t n_pages)
{
	char *memory = anon(n_pages * PAGE);
	size_t i;

	for (i = 0; i < n_pages; i++)
		fill(memory + i * PAGE, 5000000 + i / 2);
	return memory;
}

static void test_mappings(void)
{
	int file = open("/tmp/file", O_RDWR | O_CREAT, 0600);
	char *memory, page[PAGE];
	int i;

	memset(page, 1, PAGE);
	for (i = 0; i < N; i++)
		need(write(file, page, PAGE) == PAGE);
	memory = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_POPULATE, file, 0);
	need(memory != MAP_FAILED);
	is(merge_own(memory, N).refusal(MAPPING), N, "a private mapping of a file");
	memset(memory, 2, N * PAGE);
	is(merge_own(memory, N).refusal(MAPPING), N, "written to");
	munmap(memory, N * PAGE);
	memory = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED);
	memset(memory, 2, N * PAGE);
	is(merge_own(memory, N).refusal(MAPPING), N, "shared memory");
	munmap(memory, N * PAGE);
	close(file);

	memory = pairs(N);
	need(!madvise(memory, N * PAGE, MADV_WIPEONFORK));
	is(merge_own(memory, N).refusal(MAPPING), N, "memory that a fork wipes");
	need(!madvise(memory, N * PAGE, MADV_KEEPONFORK));
	is(merge_own(memory, N).n_merged, N / 2, "and when it no longer does");
	munmap(memory, N * PAGE);

	need(write_to("/proc/sys/vm/nr_hugepages", "2"));
	memory = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	need(memory != MAP_FAILED);
	memset(memory, 2, HUGE);
	is(merge_own(memory, 512).refusal(HUGETLB), 512, "hugetlb");
	munmap(memory, HUGE);
	need(write_to("/proc/sys/vm/nr_hugepages", "0"));

	memory = pairs(N);
	need(!mlock(memory, N * PAGE));
	is(merge_own(memory, N).refusal(LOCKED), N, "locked memory");
	need(!munlock(memory, N * PAGE));
	is(merge_own(memory, N).n_merged, N / 2, "and unlocked");
	munmap(memory, N * PAGE);

	memory = pairs(N);
	need(!madvise(memory, N * PAGE, MADV_MERGEABLE));
	is(merge_own(memory, N).refusal(MERGEABLE), N, "memory that the kernel's own KSM may merge");
	need(!madvise(memory, N * PAGE, MADV_UNMERGEABLE));
	is(merge_own(memory, N).n_merged, N / 2, "and no longer");
	munmap(memory, N * PAGE);
}

static void test_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range;
	char *memory = pairs(N);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	need(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api));
	range = (struct uffdio_register){
		.range = { .start = (uintptr_t)memory, .len = N * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	need(!ioctl(uffd, UFFDIO_REGISTER, &range));
	is(merge_own(memory, N).refusal(USERFAULTFD), N, "userfaultfd");
	need(!ioctl(uffd, UFFDIO_UNREGISTER, &range.range));
	is(merge_own(memory, N).n_merged, N / 2, "and without");
	close(uffd);
	munmap(memory, N * PAGE);
}

/* A huge page is refused; split by the kernel's own interface, it is merged. */
static void test_thp(void)
{
	struct ksm_partition_counts counts;
	char *memory = anon_huge(HUGE);
	int i;

	for (i = 0; i < 512; i++)
		fill(memory + i * PAGE, 5000000 + i / 2);
	if (kpageflags(pagemap_of(getpid(), (uintptr_t)memory) & PFN_MASK) >> 22 & 1) {
		is(merge_own(memory, 512).refusal(THP), 512, "a huge page");
		is(merge_own(memory + 4 * PAGE, 8).refusal(THP), 8, "a part of it");
		is(error_of(ksm_split(getpid(), memory, HUGE)), 0, "is split by debugfs");
	} else {
		ok(false, "there is a huge page");
	}
	need(!madvise(memory, HUGE, MADV_NOHUGEPAGE));
	counts = merge_own(memory, 512);
	is(counts.n_merged, 256, "and then merged");
	is(counts.refusal(THP), 0, "none is refused");
	munmap(memory, HUGE);
}

static void test_pages(void)
{
	struct iovec vector;
	char *memory;
	int ends[2], status, i;
	char zero = 0;
	pid_t pid;

	/* Fork. */
	memory = pairs(N);
	pid = fork();
	if (!pid) {
		pause();
		_exit(0);
	}
	is(merge_own(memory, N).refusal(SHARED), N, "pages shared since a fork");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	is(merge_own(memory, N).n_merged, N / 2, "and no longer");
	munmap(memory, N * PAGE);

	/* The shared zero page. */
	memory = anon(N * PAGE);
	for (i = 0; i < N; i++)
		zero |= *(volatile char *)(memory + i * PAGE);
	is(merge_own(memory, N).refusal(ZERO_PAGE), N, "the shared zero page");
	memset(memory, zero, N * PAGE);
	is(merge_own(memory, N).n_merged, N - 1, "pages of zeros of its own are merged");
	munmap(memory, N * PAGE);

	/* Swap. */
	memory = pairs(N);
	for (i = 0; i < 20; i++) {
		need(!madvise(memory, N * PAGE, MADV_PAGEOUT));
		if (!(pagemap_of(getpid(), (uintptr_t)memory) >> 63))
			break;
	}
	{
		struct ksm_partition_counts counts = merge_own(memory, N);

		is(counts.refusal(SWAPPED), N, "pages in swap");
		is(pagemap_of(getpid(), (uintptr_t)memory) >> 62 & 1, 1, "stay there");
	}
	for (i = 0; i < N; i++)
		zero |= *(volatile char *)(memory + i * PAGE);
	is(merge_own(memory, N).n_merged, N / 2, "read back, they are merged");
	munmap(memory, N * PAGE);

	/* A pipe has them in hand. */
	memory = pairs(N);
	need(!pipe(ends));
	vector = (struct iovec){ .iov_base = memory, .iov_len = 4 * PAGE };
	need(vmsplice(ends[1], &vector, 1, 0) == 4 * PAGE);
	{
		struct ksm_partition_counts counts = merge_own(memory, N);

		/* Of each pair, the second page is tried; the first waits. */
		is(counts.refusal(BUSY), 2, "pages that a pipe refers to are busy");
		is(counts.n_merged, N / 2 - 2, "the others are merged");
	}
	close(ends[0]);
	close(ends[1]);
	is(merge_own(memory, N).n_merged, 2, "and these when it is closed");
	munmap(memory, N * PAGE);
}

/* Registered buffers of io_uring are pinned for as long as it is open. */
static void test_pinned(void)
{
	struct io_uring_params params = { 0 };
	struct iovec vector;
	int ring = syscall(SYS_io_uring_setup, 2, &params);
	struct ksm_partition_counts counts;
	char *memory = pairs(N);

	if (ring < 0) {
		skip("pinned pages", "this kernel has no io_uring");
		return;
	}
	vector = (struct iovec){ .iov_base = memory, .iov_len = N * PAGE };
	need(!syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &vector, 1));
	counts = merge_own(memory, N);
	is(counts.refusal(PINNED), N, "pinned pages");
	close(ring);
	/* It is torn down in the background. */
	for (int i = 0; i < 100 && counts.n_merged < N / 2; i++) {
		usleep(20000);
		counts = merge_own(memory, N);
	}
	is(counts.n_merged, N / 2, "and unpinned");
	munmap(memory, N * PAGE);
}

static void test_limit(void)
{
	struct ksm_partition_counts counts;
	char *memory, text[32];

	memory = pairs(N);
	snprintf(text, sizeof(text), "%llu", counters_of(fd).pages_shared + 10);
	need(write_to(PARAMETERS "max_pages", text));
	counts = merge_own(memory, N);
	is(counts.n_merged, 10, "max_pages merged pages may be");
	is(counts.refusal(LIMIT), N / 2 - 10, "and no more");
	is(counters_of(fd).pages_shared, strtoul(text, NULL, 10), "they are");
	need(write_to(PARAMETERS "max_pages", "262144"));
	is(merge_own(memory, N).n_merged, N / 2 - 10, "with a higher limit, the others are merged");
	munmap(memory, N * PAGE);
}

/* The caller's cgroup is charged, and a full one is a reason to refuse, not to kill. */
static void test_cgroup(void)
{
	struct ksm_partition_counts counts;
	struct target target;
	long long before, after;
	uint64_t address;
	int *result = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	mkdir("/tmp/cgroup", 0700);
	need(!mount("cgroup", "/tmp/cgroup", "cgroup2", 0, NULL));
	need(write_to("/tmp/cgroup/cgroup.subtree_control", "+memory"));
	need(!mkdir("/tmp/cgroup/caller", 0700));
	address = subject(&target, 4000, 1);
	fflush(stdout);
	pid = fork();
	if (!pid) {
		int again = ksm_open("cgroup", RW_SYNC | KSM_CREAT, 0600), i;

		need(write_to("/tmp/cgroup/caller/cgroup.procs", "0"));
		before = number_in("/tmp/cgroup/caller/memory.current", NULL);
		for (i = 0; i < 4000; i += 2)
			need(!order(&target, ORDER_SAME, address + i * PAGE, 2, 7000000 + i));
		counts = merge(again, target.pid, address, 2000);
		after = number_in("/tmp/cgroup/caller/memory.current", NULL);
		result[0] = counts.n_merged;
		result[1] = (after - before) / PAGE;
		/* No room for the second half. */
		result[2] = write_to("/tmp/cgroup/caller/memory.max", "4600K");
		counts = merge(again, target.pid, address + 2000 * PAGE, 2000);
		result[3] = counts.refusal(MEMORY);
		result[4] = counts.n_merged + counts.n_candidates + counts.refusal(MEMORY);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	is(status, 0, "the caller in a cgroup ends well");
	is(result[0], 1000, "it merges");
	ok(result[1] >= 1000 && result[1] < 1400, "its cgroup is charged (%d pages for 1000)",
	   result[1]);
	is(result[2], 1, "the cgroup is limited");
	ok(result[3] > 500, "what it has no room for is refused (%d)", result[3]);
	is(result[4], 2000, "and nothing else goes wrong");
	target_kill(&target);
	need(!ksm_unlink("cgroup"));
	need(!rmdir("/tmp/cgroup/caller") && !umount("/tmp/cgroup"));
}

static void nothing(int number)
{
	(void)number;
}

/* A signal ends a long call; what was done is told. */
static void test_signals(void)
{
	const size_t n_pages = 24000;
	struct ksm_partition_counts counts = { 0 };
	char *memory = anon(n_pages * PAGE);
	struct sigaction action = { .sa_handler = nothing };
	struct timespec start, end;
	timer_t timer;
	struct itimerspec soon = { .it_value.tv_nsec = 20000000 };
	size_t i;
	int ret;

	for (i = 0; i < n_pages; i++)
		fill(memory + i * PAGE, 8000000 + i);
	sigaction(SIGUSR1, &action, NULL);
	need(!timer_create(CLOCK_MONOTONIC, &(struct sigevent){ .sigev_notify = SIGEV_SIGNAL,
			   .sigev_signo = SIGUSR1 }, &timer));
	need(!timer_settime(timer, 0, &soon, NULL));
	clock_gettime(CLOCK_MONOTONIC, &start);
	ret = error_of(ksm_merge_counted(fd, getpid(), memory, n_pages * PAGE, &counts));
	clock_gettime(CLOCK_MONOTONIC, &end);
	is(ret, EINTR, "a signal ends a call");
	ok(counts.n_requested > 0 && counts.n_requested < n_pages, "in the middle (%llu of %zu)",
	   counts.n_requested, n_pages);
	is(counts.walked_to, (uintptr_t)memory + counts.n_requested * PAGE, "and it tells where");
	ok(adds_up(&counts), "the counts add up");
	counts = merge_own((char *)(uintptr_t)counts.walked_to, n_pages - counts.n_requested);
	is(counters_of(fd).pages_unshared, n_pages, "going on from there misses nothing");
	is(unmerge(fd, getpid(), (uintptr_t)memory, n_pages).n_already, n_pages,
	   "an unmerge forgets candidates");
	is(counters_of(fd).pages_unshared, 0, "all of them");
	munmap(memory, n_pages * PAGE);
}

int main(void)
{
	allow(true);
	fd = partition("refuse");
	at = pairs(N);
	is(merge_own(at, N).n_merged, N / 2, "what there is nothing against is merged");
	unmerge(fd, getpid(), (uintptr_t)at, N);
	munmap(at, N * PAGE);
	test_mappings();
	test_userfaultfd();
	test_thp();
	test_pages();
	test_pinned();
	test_limit();
	test_cgroup();
	test_signals();
	is(counters_of(fd).n_killed, 0, "nobody was killed");
	ok(sysfs("refuse", "refusals/thp") >= 520, "sysfs counts refusals (thp)");
	ok(sysfs("refuse", "refusals/pinned") >= 0, "(pinned)");
	is(sysfs("refuse", "refusals/limit"), N / 2 - 10, "(limit)");
	close(fd);
	need(!ksm_unlink("refuse"));
	allow(false);
	return tap_done();
}
