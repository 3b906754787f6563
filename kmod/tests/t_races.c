// SPDX-License-Identifier: GPL-2.0
/* Targets that exit, unmap, fork or exec while they are being dumped, and threads on one file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define N_PAGES		8192	/* 32 MiB: 16 page tables */
#define CHURN_SECONDS	4

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

/* shared[1] tells what to do when let go. */
enum { DO_EXIT, DO_UNMAP, DO_REMAP, DO_FORK, DO_EXEC, DO_MAP, DO_HUGE };

static void work(uint64_t *shared)
{
	char *at = anon(N_PAGES * PAGE);
	char *path = "/bin/busybox", *arguments[] = { path, "sleep", "100", NULL };
	int i;

	for (i = 0; i < N_PAGES; i++)
		fill(at + i * PAGE, i);
	shared[0] = (uintptr_t)at;
	target_wait();
	switch (shared[1]) {
	case DO_EXIT:
		_exit(0);
	case DO_UNMAP:
		need(!munmap(at + N_PAGES / 2 * PAGE, N_PAGES / 2 * PAGE));
		break;
	case DO_REMAP:
		/* Other content in place of the second half, and other flags of the whole. */
		need(mmap(at + N_PAGES / 2 * PAGE, N_PAGES / 4 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		for (i = 0; i < N_PAGES / 4; i++)
			fill(at + (N_PAGES / 2 + i) * PAGE, 100000 + i);
		need(!madvise(at, N_PAGES / 2 * PAGE, MADV_WIPEONFORK));
		break;
	case DO_FORK:
		shared[2] = fork();
		if (!shared[2])
			_exit(0);
		break;
	case DO_EXEC:
		execv(path, arguments);
		_exit(1);
	case DO_MAP:
		/* Needs the mmap lock for writing. */
		need(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
		need(!mprotect(at, PAGE, PROT_READ));
		break;
	}
}

/* Begins a dump and reads until some pages of `at` are out; the bytes are kept. */
static int read_some(pid_t pid, uint64_t at, uint8_t *bytes, size_t *n_bytes)
{
	struct pagehash_start start;
	int fd;

	start_of(&start, pid);
	start.start = at;
	start.end = at + N_PAGES * PAGE;
	fd = dump_open(&start);
	need(fd >= 0);
	*n_bytes = 32 * 600;
	need(read(fd, bytes, *n_bytes) == (ssize_t)*n_bytes);
	return fd;
}

/* Reads the rest and looks at the whole. */
static const char *read_rest(int fd, uint8_t *bytes, size_t n_bytes, struct dump *dump)
{
	uint8_t *rest;
	size_t n_rest;

	need(!read_all(fd, 65536, &rest, &n_rest));
	close(fd);
	rest = realloc(rest, n_bytes + n_rest);
	memmove(rest + n_bytes, rest, n_rest);
	memcpy(rest, bytes, n_bytes);
	return dump_parse(rest, n_bytes + n_rest, dump);
}

static long long free_kib(void)
{
	return number_in("/proc/meminfo", "MemFree:");
}

static void check_exit(bool is_exec)
{
	const char *name = is_exec ? "exec" : "exit", *wrong;
	static uint8_t bytes[32 * 600];
	struct target target;
	struct dump dump;
	long long before;
	size_t n_bytes;
	int fd, i;

	target_start(&target, work);
	target.shared[1] = is_exec ? DO_EXEC : DO_EXIT;
	fd = read_some(target.pid, target.shared[0], bytes, &n_bytes);
	before = free_kib();
	target_release(&target);
	for (i = 0; i < 100 && free_kib() < before + N_PAGES * 4 * 3 / 4; i++)
		usleep(20000);
	ok(free_kib() >= before + N_PAGES * 4 * 3 / 4,
	   "%s: an open dump does not keep the memory (%lld MiB freed)", name,
	   (free_kib() - before) >> 10);
	wrong = read_rest(fd, bytes, n_bytes, &dump);
	ok(!wrong && dump.trailer->status == PAGEHASH_STATUS_EXITED && dump.n_pages >= 512 &&
	   dump.n_pages < N_PAGES && dump.trailer->walked_to ==
	   dump.pages[dump.n_pages - 1].address + PAGE, "%s: the dump ends and says why: %s", name,
	   wrong ? wrong : "yes");
	if (!wrong)
		is(dump.pages[511].hash, hash_of(511), "%s: pages listed before are right", name);
	dump_free(&dump);
	target_kill(&target);
}

static void check_change(int what, const char *name)
{
	static uint8_t bytes[32 * 600];
	struct target target;
	const char *wrong;
	struct dump dump;
	size_t n_bytes, i, n_old = 0, n_new = 0, n_wrong = 0;
	int fd;

	target_start(&target, work);
	target.shared[1] = what;
	fd = read_some(target.pid, target.shared[0], bytes, &n_bytes);
	target_go(&target);
	ok(true, "%s: the target is not held up by a dump that is half read", name);
	wrong = read_rest(fd, bytes, n_bytes, &dump);
	ok(!wrong && dump.trailer->status == PAGEHASH_STATUS_COMPLETE, "%s: well formed: %s", name,
	   wrong ? wrong : "yes");
	if (wrong)
		exit(1);
	for (i = 0; i < dump.n_pages; i++) {
		uint64_t number = (dump.pages[i].address - target.shared[0]) / PAGE;

		if (dump.pages[i].hash == hash_of(number))
			n_old++;
		else if (dump.pages[i].hash == hash_of(100000 + number - N_PAGES / 2))
			n_new++;
		else
			n_wrong++;
	}
	is(n_wrong, 0, "%s: every hash is of one content or the other", name);
	switch (what) {
	case DO_UNMAP:
		is(n_old, N_PAGES / 2, "%s: what was unmapped is not listed", name);
		break;
	case DO_REMAP:
		is(n_new, N_PAGES / 4, "%s: what was mapped anew is listed", name);
		is(n_old, N_PAGES * 3 / 4, "%s: and what stayed", name);
		ok(dump.trailer->n_vmas >= 2, "%s: mappings are listed again (%llu)", name,
		   (unsigned long long)dump.trailer->n_vmas);
		ok(dump_vma(&dump, target.shared[0] + N_PAGES / 2 * PAGE - PAGE)->flags &
		   PAGEHASH_VMA_WIPEONFORK, "%s: with their new flags", name);
		break;
	default:
		is(n_old, N_PAGES, "%s: all pages are listed", name);
	}
	dump_free(&dump);
	target_kill(&target);
}

/* Does everything at once, at random, until it is killed. shared[3] counts. */
static void churn(uint64_t *shared)
{
	char *at[8] = { 0 }, *stable = anon(256 * PAGE);
	size_t size[8] = { 0 };
	int i, j;

	for (i = 0; i < 256; i++)
		fill(stable + i * PAGE, 500000 + i);
	shared[0] = (uintptr_t)stable;
	signal(SIGCHLD, SIG_IGN);
	target_wait();
	for (srand(getpid());; shared[3]++) {
		i = rand() % 8;
		switch (at[i] ? rand() % 8 : 0) {
		case 0:
			if (at[i])
				munmap(at[i], size[i]);
			size[i] = (1 + rand() % 700) * PAGE;
			at[i] = mmap(NULL, size[i], PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			need(at[i] != MAP_FAILED);
			madvise(at[i], size[i], rand() % 2 ? MADV_HUGEPAGE : MADV_MERGEABLE);
			break;
		case 1:
			munmap(at[i], size[i]);
			at[i] = NULL;
			break;
		case 2:
			madvise(at[i], size[i], 21 /* MADV_PAGEOUT */);
			break;
		case 3:
			madvise(at[i], size[i], MADV_DONTNEED);
			break;
		case 4:
			mprotect(at[i], size[i] / 2 & ~(PAGE - 1), PROT_READ);
			mprotect(at[i], size[i], PROT_READ | PROT_WRITE);
			break;
		case 5:
			if (!fork())
				_exit(0);
			break;
		default:
			for (j = 0; j < (int)(size[i] / PAGE); j += 1 + rand() % 4)
				fill(at[i] + j * PAGE, rand() % 8);
		}
	}
}

static void check_churn(void)
{
	struct pagehash_start start;
	struct target target;
	const char *wrong = NULL;
	double end;
	int n_dumps = 0, n_pages = 0, n_bad = 0, i, fd;

	target_start(&target, churn);
	target_release(&target);
	write_to("/sys/kernel/mm/ksm/run", "1");
	start_of(&start, target.pid);
	for (end = seconds() + CHURN_SECONDS; seconds() < end && !wrong; n_dumps++) {
		struct dump dump;
		uint8_t *bytes;
		size_t n_bytes;

		fd = dump_open(&start);
		need(fd >= 0 && !read_all(fd, 1 + rand() % 50000, &bytes, &n_bytes));
		close(fd);
		wrong = dump_parse(bytes, n_bytes, &dump);
		if (!wrong && dump.trailer->status)
			wrong = "status";
		for (i = 0; !wrong && i < 256; i++) {
			const struct pagehash_page *page = dump_page(&dump, target.shared[0] + i * PAGE);

			n_pages++;
			n_bad += !page || (!(page->flags & PAGEHASH_PAGE_NO_HASH) &&
					   page->hash != hash_of(500000 + i));
		}
		dump_free(&dump);
	}
	write_to("/sys/kernel/mm/ksm/run", "0");
	ok(!wrong && n_dumps > 5, "%d dumps during %llu changes of a target are well formed: %s",
	   n_dumps, (unsigned long long)target.shared[3], wrong ? wrong : "yes");
	is(n_bad, 0, "%d looks at pages that do not change find their hashes", n_pages);
	ok(target.shared[3] > 50, "the target was not idle");
	target_kill(&target);
}

/* A process that ends at a random time, again and again. */
static void check_short_lives(void)
{
	int n, n_exited = 0, n_complete = 0, n_gone = 0, n_wrong = 0, fd, status;
	struct pagehash_start start;
	struct dump dump;
	uint8_t *bytes;
	size_t n_bytes;
	pid_t pid;

	fflush(stdout);
	for (n = 0; n < 60; n++) {
		pid = fork();
		if (!pid) {
			char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

			usleep(n * 100);
			if (n % 3 == 0)
				execl("/bin/busybox", "busybox", "true", NULL);
			_exit(at == MAP_FAILED);
		}
		usleep(2000);
		start_of(&start, pid);
		fd = dump_open(&start);
		if (fd < 0) {
			n_gone += fd == -ESRCH;
			n_wrong += fd != -ESRCH;
		} else {
			need(!read_all(fd, 4096, &bytes, &n_bytes));
			close(fd);
			n_wrong += !!dump_parse(bytes, n_bytes, &dump);
			n_exited += dump.trailer->status == PAGEHASH_STATUS_EXITED;
			n_complete += dump.trailer->status == PAGEHASH_STATUS_COMPLETE;
			dump_free(&dump);
		}
		waitpid(pid, &status, 0);
	}
	is(n_wrong, 0, "60 short lives: %d dumps ended early, %d were complete, %d came too late",
	   n_exited, n_complete, n_gone);
}

/* Threads that start and read on one file: who reads what is chance, but nothing breaks. */
static int shared_fd;
static pid_t shared_pid;

static void *read_and_start(void *argument)
{
	struct pagehash_start start;
	char bytes[3000];
	long i, n_wrong = 0;

	start_of(&start, shared_pid);
	for (i = 0; i < 300; i++) {
		if (argument && i % 10 == 0)
			n_wrong += ioctl(shared_fd, PAGEHASH_IOC_START, &start) != 0;
		n_wrong += read(shared_fd, bytes, 1 + i * 7 % sizeof(bytes)) < 0;
	}
	return (void *)n_wrong;
}

static void check_threads(void)
{
	pthread_t threads[4];
	struct target target;
	struct pagehash_start start;
	long n_wrong = 0;
	void *result;
	long i;

	target_start(&target, work);
	shared_pid = target.pid;
	start_of(&start, target.pid);
	shared_fd = dump_open(&start);
	need(shared_fd >= 0);
	for (i = 0; i < 4; i++)
		need(!pthread_create(&threads[i], NULL, read_and_start, (void *)(i % 2)));
	for (i = 0; i < 4; i++) {
		need(!pthread_join(threads[i], &result));
		n_wrong += (long)result;
	}
	is(n_wrong, 0, "four threads on one file");
	close(shared_fd);
	target_kill(&target);
}

/* Two files on one process at a time, read by turns, are two dumps. */
static void check_two_files(void)
{
	struct pagehash_start start;
	struct target target;
	struct dump a, b;
	uint8_t *bytes[2];
	size_t n_bytes[2] = { 0, 0 };
	int fd[2], i, n_same = 0;
	ssize_t n[2];

	target_start(&target, work);
	start_of(&start, target.pid);
	for (i = 0; i < 2; i++) {
		bytes[i] = malloc(1 << 20);
		fd[i] = dump_open(&start);
		need(fd[i] >= 0);
	}
	do {
		for (i = 0; i < 2; i++) {
			n[i] = read(fd[i], bytes[i] + n_bytes[i], i ? 999 : 5000);
			need(n[i] >= 0);
			n_bytes[i] += n[i];
			need(n_bytes[i] < (1 << 20) - 5000);
		}
	} while (n[0] || n[1]);
	need(!dump_parse(bytes[0], n_bytes[0], &a) && !dump_parse(bytes[1], n_bytes[1], &b));
	for (i = 0; i < (int)a.n_pages && i < (int)b.n_pages; i++)
		n_same += a.pages[i].hash == b.pages[i].hash &&
			  a.pages[i].frame_id == b.pages[i].frame_id;
	ok(a.n_pages == b.n_pages && n_same == (int)a.n_pages && n_same >= N_PAGES,
	   "two files at a time: two dumps, with the same hashes and frame ids (%d)", n_same);
	ok(a.header->mm_id == b.header->mm_id, "and the same mm id");
	close(fd[0]);
	close(fd[1]);
	dump_free(&a);
	dump_free(&b);
	target_kill(&target);
}

int main(void)
{
	check_exit(false);
	check_exit(true);
	check_change(DO_UNMAP, "unmap");
	check_change(DO_REMAP, "remap");
	check_change(DO_FORK, "fork");
	check_change(DO_MAP, "mmap and mprotect");
	check_two_files();
	check_threads();
	check_short_lives();
	check_churn();
	return tap_done();
}
