// SPDX-License-Identifier: GPL-2.0
/*
 * Merging and unmerging at full speed while processes do all they can to the memory that is merged:
 * write (by threads, by process_vm_writev, by O_DIRECT reads), fork, unmap, throw away, page out to
 * zram, protect, move, lock, exit; and memory is compacted. Every process knows what each of its
 * pages must hold.
 *
 * It takes 15 seconds, or what planner_stress= on the kernel's command line says: the kernel hands that
 * to its first process in the environment.
 *
 * Two partitions share the processes by halves of their memory; at the end no frame is in both.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "partition.h"

#define N_WORKERS	4
#define N_WRITERS	2
#define N_PAGES		256	/* of each writer */
#define N_CONTENTS	6

static char disk[32];

/* What a worker and the mergers share. */
struct slot {
	_Atomic pid_t pid;		/* 0 while there is no worker to merge */
	_Atomic uint64_t at[N_WRITERS];
	_Atomic uint64_t n_ops;
	_Atomic uint64_t n_corrupt;
	_Atomic uint64_t n_refused;	/* calls that failed, such as mremap */
	_Atomic uint64_t bad_op;
};

static struct shared {
	_Atomic int stop;
	struct slot slots[N_WORKERS];
} *shared;

struct writer {
	struct slot *slot;
	int number;
	char *at;
	uint64_t content[N_PAGES];	/* number for fill(); 0: zeros; bumped: see below */
	uint64_t bumps[N_PAGES];	/* what has been added to the last word */
	uint64_t random;
	int file;
	char *buffer;
};

static uint64_t draw(struct writer *w, uint64_t n)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random % n;
}

static void expected(const struct writer *w, int page, uint64_t *words)
{
	if (w->content[page])
		fill(words, w->content[page]);
	else
		memset(words, 0, PAGE);
	words[511] += w->bumps[page];
}

static void check(struct writer *w, int page, int op)
{
	uint64_t words[512];

	expected(w, page, words);
	if (memcmp(words, w->at + page * PAGE, PAGE)) {
		w->slot->n_corrupt++;
		w->slot->bad_op = op;
		/* Count it once. */
		memcpy(w->at + page * PAGE, words, PAGE);
	}
}

static void write_page(struct writer *w, int page)
{
	w->content[page] = 1 + draw(w, N_CONTENTS);
	w->bumps[page] = 0;
	fill(w->at + page * PAGE, w->content[page]);
}

static void write_remotely(struct writer *w, int page)
{
	struct iovec from = { w->buffer, PAGE }, to = { w->at + page * PAGE, PAGE };

	w->content[page] = 1 + draw(w, N_CONTENTS);
	w->bumps[page] = 0;
	fill(w->buffer, w->content[page]);
	if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != PAGE)
		w->slot->n_corrupt++;
}

/* The file holds the contents 1, 2, ...; a read into memory that is being merged. */
static void read_directly(struct writer *w, int page)
{
	uint64_t content = 1 + draw(w, N_CONTENTS);

	if (pread(w->file, w->at + page * PAGE, PAGE, (content - 1) * PAGE) != PAGE) {
		w->slot->n_refused++;
		write_page(w, page);
		return;
	}
	w->content[page] = content;
	w->bumps[page] = 0;
}

static void fork_here(struct writer *w)
{
	int page = draw(w, N_PAGES), i, status;
	pid_t pid = fork();

	if (!pid) {
		for (i = 0; i < 16; i++) {
			int at = (page + i) % N_PAGES;

			fill(w->at + at * PAGE, 1 + (at + i) % N_CONTENTS);
			if (memcmp(w->at + at * PAGE, w->at + at * PAGE, PAGE))
				_exit(1);
		}
		_exit(0);
	}
	if (pid < 0) {
		w->slot->n_refused++;
		return;
	}
	waitpid(pid, &status, 0);
	w->slot->n_corrupt += !!status;
}

static void lose(struct writer *w, int page, int n)
{
	for (int i = page; i < page + n; i++) {
		w->content[i] = 0;
		w->bumps[i] = 0;
	}
}

static pthread_mutex_t moving = PTHREAD_MUTEX_INITIALIZER;

/*
 * One at a time in a process: an mremap that fails may have unmapped the new place, which another
 * thread could have got before it is unmapped once more.
 */
static void move(struct writer *w)
{
	char *to;

	pthread_mutex_lock(&moving);
	to = mmap(NULL, N_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	w->slot->at[w->number] = 0;
	if (to == MAP_FAILED ||
	    mremap(w->at, N_PAGES * PAGE, N_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) {
		w->slot->n_refused++;
		if (to != MAP_FAILED)
			munmap(to, N_PAGES * PAGE);
	} else {
		w->at = to;
	}
	w->slot->at[w->number] = (uintptr_t)w->at;
	pthread_mutex_unlock(&moving);
}

static void one(struct writer *w)
{
	int page = draw(w, N_PAGES), n = 1 + draw(w, 8), op = draw(w, 100);
	char *at = w->at + page * PAGE;

	if (page + n > N_PAGES)
		n = N_PAGES - page;
	if (op < 40) {
		check(w, page, op);
	} else if (op < 60) {
		write_page(w, page);
	} else if (op < 72) {
		check(w, page, op);
		((uint64_t *)at)[511]++;
		w->bumps[page]++;
		/* Most go back, so that pages stay equal. */
		if (op < 69) {
			((uint64_t *)at)[511]--;
			w->bumps[page]--;
		}
		check(w, page, op);
	} else if (op < 77) {
		write_remotely(w, page);
	} else if (op < 84) {
		read_directly(w, page);
		check(w, page, op);
	} else if (op < 85) {
		fork_here(w);
	} else if (op < 88) {
		if (mmap(at, n * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			w->slot->n_refused++;
		else
			lose(w, page, n);
	} else if (op < 91) {
		if (madvise(at, n * PAGE, MADV_DONTNEED))
			w->slot->n_refused++;
		else
			lose(w, page, n);
	} else if (op < 94) {
		w->slot->n_refused += !!madvise(at, n * PAGE, MADV_PAGEOUT);
		check(w, page, op);
	} else if (op < 97) {
		mprotect(at, n * PAGE, PROT_READ);
		check(w, page, op);
		mprotect(at, n * PAGE, PROT_READ | PROT_WRITE);
		write_page(w, page);
	} else if (op < 98) {
		move(w);
	} else {
		w->slot->n_refused += !!mlock(at, n * PAGE);
		check(w, page, op);
		munlock(at, n * PAGE);
	}
	w->slot->n_ops++;
}

static void *write_on(void *argument)
{
	struct writer *w = argument;

	while (!shared->stop)
		one(w);
	for (int page = 0; page < N_PAGES; page++)
		check(w, page, 1000);
	return NULL;
}

/* A worker ends by itself after some time, and is followed by another. */
static void work(struct slot *slot, int number, uint64_t seed)
{
	struct writer writers[N_WRITERS];
	pthread_t threads[N_WRITERS];
	int i, page;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < N_WRITERS; i++) {
		struct writer *w = &writers[i];

		memset(w, 0, sizeof(*w));
		w->slot = slot;
		w->number = i;
		w->random = seed * 7919 + i + 1;
		w->at = mmap(NULL, N_PAGES * PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		w->buffer = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0);
		w->file = open(disk, O_RDONLY | O_DIRECT);
		if (w->at == MAP_FAILED || w->buffer == MAP_FAILED || w->file < 0)
			_exit(2);
		for (page = 0; page < N_PAGES; page++)
			write_page(w, page);
		slot->at[i] = (uintptr_t)w->at;
	}
	slot->pid = getpid();
	for (i = 0; i < N_WRITERS; i++)
		if (pthread_create(&threads[i], NULL, write_on, &writers[i]))
			_exit(3);
	for (i = 0; i < 30 + number * 7 && !shared->stop; i++)
		usleep(100000);
	if (!shared->stop) {
		/* With its writers in the middle of something. */
		slot->pid = 0;
		_exit(0);
	}
	for (i = 0; i < N_WRITERS; i++)
		pthread_join(threads[i], NULL);
	/* Stays until the frames have been looked at. */
	while (shared->stop == 1)
		usleep(10000);
	_exit(0);
}

static pid_t start_worker(int i, uint64_t seed)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid)
		work(&shared->slots[i], i, seed);
	return pid;
}

static struct merger {
	int fds[N_WRITERS];
	uint64_t n_calls, n_merged, n_unmerged, n_killed, n_wrong, refused[KSM_PARTITION_REFUSED_MAX];
	uint64_t random;
} mergers[2];

static void *merge_on(void *argument)
{
	struct merger *m = argument;

	while (!shared->stop) {
		uint64_t r = m->random = m->random * 6364136223846793005ULL + 1442695040888963407ULL;
		struct slot *slot = &shared->slots[(r >> 33) % N_WORKERS];
		int writer = (r >> 40) % N_WRITERS, page = (r >> 43) % N_PAGES;
		int n = 1 + (r >> 52) % (N_PAGES - page), i;
		struct ksm_partition_counts counts = { 0 };
		uint64_t at = slot->at[writer];
		pid_t pid = slot->pid;

		if (!pid || !at) {
			sched_yield();
			continue;
		}
		if ((r >> 60) % 8)
			ksm_merge_counted(m->fds[writer], pid, (void *)(at + page * PAGE), n * PAGE,
					  &counts);
		else
			ksm_unmerge_counted(m->fds[writer], pid, (void *)(at + page * PAGE),
					    n * PAGE, &counts);
		m->n_calls++;
		m->n_merged += counts.n_merged + counts.n_partners;
		m->n_unmerged += counts.n_unmerged;
		m->n_killed += counts.n_killed;
		m->n_wrong += !adds_up(&counts);
		for (i = 0; i < KSM_PARTITION_REFUSED_MAX; i++)
			m->refused[i] += counts.refused[i];
	}
	return NULL;
}

static void frames_are_apart(void)
{
	size_t n = N_WORKERS * N_PAGES;
	uint64_t *frames[N_WRITERS];
	int i, j;

	for (j = 0; j < N_WRITERS; j++) {
		frames[j] = calloc(n, 8);
		for (i = 0; i < N_WORKERS; i++) {
			uint64_t *some;

			/* One that ended just before the end had no successor. */
			if (!shared->slots[i].pid)
				continue;
			some = frames_of(shared->slots[i].pid, shared->slots[i].at[j],
					 N_PAGES);

			/* The shared zero page, of which reads of new memory make use, is nobody's. */
			for (int k = 0; k < N_PAGES; k++)
				if (some[k] && kpageflags(some[k]) >> 24 & 1)
					some[k] = 0;
			memcpy(frames[j] + i * N_PAGES, some, N_PAGES * 8);
			free(some);
		}
	}
	is(frames_common(frames[0], n, frames[1], n), 0, "no frame is in both partitions");
	diag("%zu pages on %zu and %zu frames", 2 * n, frames_distinct(frames[0], n),
	     frames_distinct(frames[1], n));
}

/* A disk of the contents 1, 2, ..., that can be read without the page cache. */
static void make_disk(void)
{
	int number = number_in("/sys/class/zram-control/hot_add", NULL), file, i;
	uint64_t words[512];
	char path[64];

	need(number > 0);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", number);
	need(write_to(path, "1M"));
	snprintf(disk, sizeof(disk), "/dev/zram%d", number);
	file = open(disk, O_WRONLY);
	need(file >= 0);
	for (i = 0; i < N_CONTENTS; i++) {
		fill(words, i + 1);
		need(write(file, words, PAGE) == PAGE);
	}
	need(!fsync(file) && !close(file));
}

int main(void)
{
	int seconds = 15, i, j, status, n_died = 0;
	uint64_t n_ops = 0, n_corrupt = 0, n_failed = 0, n_merged = 0, n_wrong = 0, n_killed = 0;
	pid_t pids[N_WORKERS], pid;
	pthread_t threads[2];
	struct timespec start, now;
	uint64_t seed = 1;
	int fds[N_WRITERS];

	if (getenv("planner_stress"))
		seconds = atoi(getenv("planner_stress"));
	allow(true);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	need(shared != MAP_FAILED);
	make_disk();
	fds[0] = partition("stress0");
	fds[1] = partition("stress1");
	for (i = 0; i < N_WORKERS; i++)
		pids[i] = start_worker(i, seed++);
	for (i = 0; i < 2; i++) {
		memcpy(mergers[i].fds, fds, sizeof(fds));
		mergers[i].random = i + 1;
		need(!pthread_create(&threads[i], NULL, merge_on, &mergers[i]));
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (j = 1;; j++) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec >= seconds)
			break;
		usleep(100000);
		for (i = 0; i < N_WORKERS; i++) {
			pid = waitpid(pids[i], &status, WNOHANG);
			if (pid != pids[i])
				continue;
			n_died += !!status;
			if (status)
				diag("worker %d ended with %#x", i, status);
			pids[i] = start_worker(i, seed++);
		}
		if (j % 20 == 0)
			write_to("/proc/sys/vm/compact_memory", "1");
	}
	shared->stop = 1;
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	/* Writers check all of their pages and wait. */
	for (i = 0; i < N_WORKERS; i++)
		for (j = 0; j < 100 && !shared->slots[i].pid; j++)
			usleep(10000);
	sleep(1);
	for (i = 0; i < N_WORKERS; i++)
		for (j = 0; j < N_WRITERS; j++)
			ksm_merge(fds[j], shared->slots[i].pid, (void *)shared->slots[i].at[j],
				  N_PAGES * PAGE);
	frames_are_apart();
	shared->stop = 2;
	for (i = 0; i < N_WORKERS; i++) {
		waitpid(pids[i], &status, 0);
		n_died += !!status;
	}
	for (i = 0; i < N_WORKERS; i++) {
		n_ops += shared->slots[i].n_ops;
		n_corrupt += shared->slots[i].n_corrupt;
		n_failed += shared->slots[i].n_refused;
		if (shared->slots[i].n_corrupt)
			diag("worker %d: %llu corrupt, last in operation %llu", i,
			     (unsigned long long)shared->slots[i].n_corrupt,
			     (unsigned long long)shared->slots[i].bad_op);
	}
	for (i = 0; i < 2; i++) {
		n_merged += mergers[i].n_merged;
		n_wrong += mergers[i].n_wrong;
		n_killed += mergers[i].n_killed;
		diag("merger %d: %llu calls, %llu merged, %llu unmerged, refused: shared %llu "
		     "swapped %llu pinned %llu busy %llu changed %llu", i,
		     (unsigned long long)mergers[i].n_calls, (unsigned long long)mergers[i].n_merged,
		     (unsigned long long)mergers[i].n_unmerged,
		     (unsigned long long)mergers[i].refused[KSM_PARTITION_REFUSED_SHARED],
		     (unsigned long long)mergers[i].refused[KSM_PARTITION_REFUSED_SWAPPED],
		     (unsigned long long)mergers[i].refused[KSM_PARTITION_REFUSED_PINNED],
		     (unsigned long long)mergers[i].refused[KSM_PARTITION_REFUSED_BUSY],
		     (unsigned long long)mergers[i].refused[KSM_PARTITION_REFUSED_CHANGED]);
	}
	diag("%d s: %llu operations, %llu pages merged, %llu calls of workers failed", seconds,
	     (unsigned long long)n_ops, (unsigned long long)n_merged, (unsigned long long)n_failed);
	is(n_corrupt, 0, "no page was corrupted");
	is(n_wrong, 0, "the counts of all calls add up");
	is(n_killed, 0, "nobody was killed");
	is(n_died, 0, "no worker died");
	ok(n_ops > 1000 && n_merged > 1000, "there was something to do");
	is(counters_of(fds[0]).pages_shared + counters_of(fds[1]).pages_shared, 0,
	   "with all workers gone, nothing is shared");
	for (j = 0; j < N_WRITERS; j++)
		close(fds[j]);
	need(!ksm_unlink("stress0") && !ksm_unlink("stress1"));
	allow(false);
	return tap_done();
}
