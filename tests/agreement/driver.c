// SPDX-License-Identifier: GPL-2.0
/*
 * Runs scripts of tests/agreement/script.py on the kernel module: `driver SCRIPTS` prints a line for
 * each operation, and "end" after each script. It is the only program that runs on the machine, and
 * there is one CPU.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libksm.h"

#define PAGE		4096UL
#define BASE		0x1000000000UL
#define N_SMALL		64
#define N_PROCESSES	24
#define N_WORDS		1200
#define N_FDS		1000
#define DIRECTORY	"/sys/kernel/mm/ksm/partition/"
#define ALLOW		"/sys/module/ksm_planner/parameters/allow_merge"
/* Rounds of a scanner after which nothing changes any more. */
#define N_ROUNDS	5

static const char *const reasons[] = {
	"mapping", "hugetlb", "locked", "userfaultfd", "mergeable", "thp", "shared", "zero_page",
	"swapped", "pinned", "busy", "changed", "foreign", "special", "limit", "memory",
};

/* An order to a process, in memory that all share. */
struct slot {
	char name[16];
	long arguments[N_WORDS];
	int n;
	long result;
	int64_t contents[N_SMALL];	/* -1 absent, -2 no content of ours */
	uint64_t entries[N_SMALL];	/* of pagemap */
};

static struct slot *slots;
static pid_t pids[N_PROCESSES];
static int orders[N_PROCESSES][2], answers[N_PROCESSES][2];
static int fds[N_FDS];
static char *drain;

#define need(what) do { \
	if (!(what)) { \
		printf("failed: %s:%d %s: %s\n", __FILE__, __LINE__, #what, strerror(errno)); \
		fflush(stdout); \
		_exit(1); \
	} \
} while (0)

static void serve(int p) __attribute__((noreturn));

static char *at(long v)
{
	return (char *)BASE + v * PAGE;
}

static void fill(uint64_t *page, uint64_t content)
{
	unsigned int i;

	for (i = 0; i < PAGE / 8; i++)
		page[i] = content ? content << 32 | i : 0;
}

static int64_t content_of(const uint64_t *page)
{
	uint64_t content = page[0] >> 32;
	unsigned int i;

	for (i = 0; i < PAGE / 8; i++)
		if (page[i] != (content ? content << 32 | i : 0))
			return -2;
	return content;
}

/* What is mapped, by the numbers of frames; contents of what is present in private small pages. */
static void look(struct slot *slot)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY), v;

	need(pagemap >= 0);
	need(pread(pagemap, slot->entries, sizeof(slot->entries), BASE / PAGE * 8) ==
	     sizeof(slot->entries));
	close(pagemap);
	for (v = 0; v < N_SMALL; v++)
		slot->contents[v] = slot->entries[v] >> 63 ? content_of((uint64_t *)at(v)) : -1;
}

/* What a process does in its own memory. */
static long perform(struct slot *slot)
{
	static const int advices[] = { 0, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_WIPEONFORK,
				       MADV_KEEPONFORK };
	const char *name = slot->name;
	const long *a = slot->arguments;
	long v = a[1], n = slot->n > 2 ? a[2] : 0, i;

	if (!strcmp(name, "map")) {
		int how = a[3] == 2 ? MAP_SHARED : MAP_PRIVATE;

		need(mmap(at(v), n * PAGE, PROT_READ | PROT_WRITE,
			  how | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at(v));
		need(!madvise(at(v), n * PAGE, a[3] == 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
		/* Children of the driver begin with nothing. */
		if (!a[0])
			need(!madvise(at(v), n * PAGE, MADV_DONTFORK));
	} else if (!strcmp(name, "write")) {
		for (i = 2; i < slot->n; i++)
			fill((uint64_t *)at(v + i - 2), a[i]);
	} else if (!strcmp(name, "read")) {
		for (i = 0; i < n; i++)
			(void)*(volatile char *)at(v + i);
	} else if (!strcmp(name, "dontneed")) {
		need(!madvise(at(v), n * PAGE, MADV_DONTNEED));
	} else if (!strcmp(name, "unmap")) {
		need(!munmap(at(v), n * PAGE));
	} else if (!strcmp(name, "lock")) {
		need(!mlock(at(v), n * PAGE));
	} else if (!strcmp(name, "unlock")) {
		need(!munlock(at(v), n * PAGE));
	} else if (!strcmp(name, "advise")) {
		need(!madvise(at(v), n * PAGE, advices[a[3]]));
	} else if (!strcmp(name, "protect")) {
		need(!mprotect(at(v), n * PAGE, PROT_READ | (a[3] ? PROT_WRITE : 0)));
	} else if (!strcmp(name, "move")) {
		/* Page by page: a range may be of several mappings. */
		for (i = 0; i < n; i++)
			need(mremap(at(v + i), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				    at(a[3] + i)) == at(a[3] + i));
	} else if (!strcmp(name, "fork")) {
		/* The slot is used again as soon as this one has answered. */
		int child = a[1];
		/* The child is the driver's, which waits for its end. */
		pid_t pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

		need(pid >= 0);
		if (!pid)
			serve(child);
		return pid;
	} else if (!strcmp(name, "exit")) {
		_exit(0);
	} else if (!strcmp(name, "look")) {
		look(slot);
	} else {
		need(!"known order");
	}
	return 0;
}

static void serve(int p)
{
	char byte;

	for (;;) {
		need(read(orders[p][0], &byte, 1) == 1);
		slots[p].result = perform(&slots[p]);
		need(write(answers[p][1], &byte, 1) == 1);
	}
}

/* Lets process p do what its slot says. */
static long order(int p)
{
	char byte = 0;

	if (!p)
		return perform(&slots[0]);
	need(pids[p]);
	need(write(orders[p][1], &byte, 1) == 1);
	if (!strcmp(slots[p].name, "exit")) {
		int status;

		need(waitpid(pids[p], &status, 0) == pids[p] && !status);
		pids[p] = 0;
		return 0;
	}
	need(read(answers[p][0], &byte, 1) == 1);
	return slots[p].result;
}

static void spawn(int p)
{
	pids[p] = fork();
	need(pids[p] >= 0);
	if (!pids[p])
		serve(p);
}

/* Credentials of script.CALLERS. */
static void become(int who)
{
	static const gid_t groups[] = { 50 };
	static const struct {
		uid_t uid;
		gid_t gid;
		int n_groups;
		mode_t umask;
	} callers[] = { { 0, 0, 0, 0 }, { 1000, 100, 1, 027 }, { 1001, 50, 0, 022 } };

	need(!seteuid(0) && !setegid(callers[who].gid));
	need(!setgroups(callers[who].n_groups, groups));
	umask(callers[who].umask);
	need(!seteuid(callers[who].uid));
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool is_written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return is_written;
}

static bool is_there(const char *name)
{
	char path[300];

	snprintf(path, sizeof(path), DIRECTORY "%s/sync", name);
	return !access(path, F_OK);
}

static unsigned long long number(const char *name, const char *file, int base)
{
	char path[300], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), DIRECTORY "%s/%s", name, file);
	fd = open(path, O_RDONLY);
	need(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return strtoull(text, NULL, base);
}

/* The scanner of a new partition waits until it is asked to scan. */
static void pause_scanner(const char *name, const char *pages)
{
	char path[300];

	snprintf(path, sizeof(path), DIRECTORY "%s/pages_to_scan", name);
	if (is_there(name) && !number(name, "sync", 10))
		need(put(path, pages));
}

static void scan(const char *name)
{
	struct ksm_partition_counters counters;
	char path[300];
	uint64_t first;
	int fd = ksm_open(name, O_RDONLY, 0), i;

	need(fd >= 0 && !ksm_counters(fd, &counters));
	first = counters.full_scans;
	snprintf(path, sizeof(path), DIRECTORY "%s/sleep_millisecs", name);
	need(put(path, "1"));
	pause_scanner(name, "100000");
	for (i = 0; counters.n_ranges && counters.full_scans < first + N_ROUNDS; i++) {
		need(i < 5000);
		usleep(2000);
		need(!ksm_counters(fd, &counters));
	}
	pause_scanner(name, "0");
	/* The turn that it is in ends before this comes back. */
	need(!ksm_counters(fd, &counters));
	close(fd);
}

static void tell(int ret)
{
	if (ret < 0)
		printf("error %d\n", errno);
	else
		printf("ok\n");
}

static void tell_refused(const __u64 *refused)
{
	int i;

	for (i = 0; i < KSM_PARTITION_REFUSED_MAX; i++) {
		if (refused[i] && i < KSM_PARTITION_REFUSED_N)
			printf(" %s=%llu", reasons[i], refused[i]);
		else if (refused[i])
			printf(" ?%d=%llu", i, refused[i]);
	}
	printf("\n");
}

static int descriptor(long fd)
{
	return fd < N_FDS ? fds[fd] : -1;
}

static pid_t pid_of(long p)
{
	static const pid_t odd[] = { 0, 0x7fffffff, 2 };

	if (p < 0)
		return odd[-1 - p];
	/* One that has ended: a pid that nobody has. */
	return p ? pids[p] ? pids[p] : 3000000 : getpid();
}

static void call(const char *name, long fd, long p, unsigned long address, unsigned long size)
{
	struct ksm_partition_counts counts;
	void *from = (void *)address;
	pid_t pid = pid_of(p);
	int ret;

	fd = descriptor(fd);
	if (!strcmp(name, "attach")) {
		tell(ksm_attach(fd, pid, from, size));
		return;
	}
	if (!strcmp(name, "detach")) {
		tell(ksm_detach(fd, pid, from, size));
		return;
	}
	memset(&counts, 0xff, sizeof(counts));
	ret = !strcmp(name, "merge") ? ksm_merge_counted(fd, pid, from, size, &counts) :
				       ksm_unmerge_counted(fd, pid, from, size, &counts);
	if (ret) {
		tell(ret);
		return;
	}
	if (counts.walked_to != address + size || counts.n_killed)
		printf("walked to %#llx, killed %llu: ", counts.walked_to, counts.n_killed);
	printf("ok %llu %llu %llu %llu %llu %llu %llu %llu", counts.n_requested, counts.n_absent,
	       counts.n_already, counts.n_merged, counts.n_candidates, counts.n_volatile,
	       counts.n_partners, counts.n_unmerged);
	tell_refused(counts.refused);
}

static void tell_counters(long fd)
{
	static const __u64 none[KSM_PARTITION_REFUSED_MAX];
	struct ksm_partition_counters counters;
	bool is_sync;

	if (ksm_counters(descriptor(fd), &counters)) {
		tell(-1);
		return;
	}
	is_sync = counters.flags & KSM_PARTITION_IS_SYNC;
	printf("ok %u %u %u %d %llu %llu %llu %llu", counters.owner, counters.group, counters.mode,
	       is_sync, counters.pages_shared, counters.pages_sharing, counters.pages_unshared,
	       counters.pages_volatile);
	if (is_sync)
		printf(" %llu %llu %llu %llu", counters.pages_scanned, counters.calls,
		       counters.n_merged, counters.n_unmerged);
	tell_refused(is_sync ? counters.refused : none);
}

static void tell_files(const char *name)
{
	static const char *const files[] = { "pages_shared", "pages_sharing", "pages_unshared",
					     "pages_volatile", "pages_scanned", "calls" };
	__u64 refused[KSM_PARTITION_REFUSED_MAX] = { 0 };
	bool is_sync;
	size_t i;

	if (!is_there(name)) {
		printf("error %d\n", ENOENT);
		return;
	}
	is_sync = number(name, "sync", 10);
	printf("ok %llu %llu %llu %d", number(name, "owner", 10), number(name, "group", 10),
	       number(name, "mode", 8), is_sync);
	for (i = 0; i < (is_sync ? 6 : 4); i++)
		printf(" %llu", number(name, files[i], 10));
	for (i = 0; is_sync && i < KSM_PARTITION_REFUSED_N; i++) {
		char file[40];

		snprintf(file, sizeof(file), "refusals/%s", reasons[i]);
		refused[i] = number(name, file, 10);
	}
	tell_refused(refused);
}

/* Every present private small page, with its frame's number in order of appearance. */
static void tell_look(void)
{
	static uint64_t frames[N_PROCESSES * N_SMALL];
	int n_frames = 0, p, v, i;
	const char *space = "";

	printf("ok");
	space = " ";
	for (p = 0; p < N_PROCESSES; p++) {
		if (p && !pids[p])
			continue;
		printf("%s%d:", space, p);
		strcpy(slots[p].name, "look");
		order(p);
		for (v = 0; v < N_SMALL; v++) {
			uint64_t entry = slots[p].entries[v], frame = entry & ((1UL << 55) - 1);

			/* Bit 61: of a file or shared. Frames of the module look like that, too. */
			if (!(entry >> 63) || slots[p].contents[v] == -1)
				continue;
			for (i = 0; i < n_frames && frames[i] != frame; i++)
				;
			if (i == n_frames)
				frames[n_frames++] = frame;
			printf(" %d=%lld@%d", v, (long long)slots[p].contents[v], i);
		}
	}
	printf("\n");
}

static void forget_all(void)
{
	struct dirent *entry;
	DIR *directory;
	int p, i;

	become(0);
	need(put(ALLOW, "1"));
	for (i = 0; i < N_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
	for (p = 1; p < N_PROCESSES; p++) {
		if (!pids[p])
			continue;
		strcpy(slots[p].name, "exit");
		order(p);
	}
	need(!munmap((void *)BASE, 2 * 1024 * PAGE));
	directory = opendir(DIRECTORY);
	need(directory);
	while ((entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			need(!ksm_unlink(entry->d_name));
	closedir(directory);
}

static void run(char *line)
{
	static char *words[N_WORDS + 1];
	static int who;
	char *name, *rest, *word;
	int n = 0, i, p;

	for (word = strtok_r(line, " \n", &rest); word && n <= N_WORDS;
	     word = strtok_r(NULL, " \n", &rest))
		words[n++] = word;
	need(n);
	name = words[0];
	if (!strcmp(name, "end")) {
		forget_all();
		who = 0;
		printf("end\n");
	} else if (!strcmp(name, "spawn")) {
		need(!seteuid(0));
		spawn(atoi(words[1]));
		become(who);
		printf("ok\n");
	} else if (!strcmp(name, "as")) {
		who = atoi(words[1]);
		become(who);
		printf("ok\n");
	} else if (!strcmp(name, "allow")) {
		need(!seteuid(0) && put(ALLOW, words[1]));
		become(who);
		printf("ok\n");
	} else if (!strcmp(name, "open")) {
		int fd = atoi(words[1]);

		need(fd < N_FDS);
		fds[fd] = ksm_open(words[2] + 1, atoi(words[3]), atoi(words[4]));
		tell(fds[fd]);
		need(!seteuid(0));
		if (fds[fd] >= 0)
			pause_scanner(words[2] + 1, "0");
		become(who);
	} else if (!strcmp(name, "close")) {
		int fd = atoi(words[1]);

		tell(close(fds[fd]));
		fds[fd] = -1;
	} else if (!strcmp(name, "unlink")) {
		tell(ksm_unlink(words[1] + 1));
	} else if (!strcmp(name, "merge") || !strcmp(name, "unmerge") || !strcmp(name, "attach") ||
		   !strcmp(name, "detach")) {
		/* Pages on their way to the LRU are busy; with one CPU, this is all of them. */
		need(!mlock(drain, PAGE) && !munlock(drain, PAGE));
		call(name, atol(words[1]), atol(words[2]), strtoul(words[3], NULL, 10),
		     strtoul(words[4], NULL, 10));
	} else if (!strcmp(name, "counters")) {
		tell_counters(atol(words[1]));
	} else if (!strcmp(name, "files") || !strcmp(name, "scan") || !strcmp(name, "look")) {
		need(!seteuid(0));
		if (!strcmp(name, "files"))
			tell_files(words[1] + 1);
		else if (!strcmp(name, "look"))
			tell_look();
		else
			scan(words[1] + 1);
		become(who);
		if (!strcmp(name, "scan"))
			printf("ok\n");
	} else {
		p = atoi(words[1]);
		strcpy(slots[p].name, name);
		slots[p].n = n - 1;
		for (i = 1; i < n; i++)
			slots[p].arguments[i - 1] = atol(words[i]);
		/* Process 0 is the driver: what it does with its memory it does as root. */
		need(!seteuid(0));
		i = order(p);
		if (!strcmp(name, "fork"))
			pids[slots[p].arguments[1]] = i;
		become(who);
		printf("ok\n");
	}
}

int main(int argc, char **argv)
{
	static char line[1 << 16];
	FILE *script;
	int i;

	need(argc == 2);
	script = fopen(argv[1], "r");
	need(script);
	slots = mmap(NULL, N_PROCESSES * sizeof(*slots), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	drain = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(slots != MAP_FAILED && drain != MAP_FAILED);
	for (i = 0; i < N_PROCESSES; i++)
		need(!pipe(orders[i]) && !pipe(answers[i]));
	for (i = 0; i < N_FDS; i++)
		fds[i] = -1;
	become(0);
	need(put(ALLOW, "1"));
	while (fgets(line, sizeof(line), script)) {
		run(line);
		fflush(stdout);
	}
	need(put(ALLOW, "0"));
	return 0;
}
