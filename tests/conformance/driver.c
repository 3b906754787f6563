/*
 * Runs scripts (script.py, compile_script) on this kernel's KSM and tells what it sees.
 *
 *     driver SCRIPTS OUT     root; KSM must be nobody else's
 *
 * A script's processes are workers forked from this one, which never has mergeable memory. A worker
 * takes one command at a time from its pipe; "fork" forks the worker itself, as a sibling.
 *
 * One full scan: pages_to_scan is larger than any script's pages, sleep_millisecs is an hour, and
 * writing another value wakes ksmd for one batch, which ends with the scan. ksmd sleeps
 * interruptibly only between batches, so "S" with a context switch more than before means: done.
 *
 * Everything is pinned to one CPU, ksmd too: a page in another CPU's batch of pages on their way to
 * the LRU lists has a reference more and would not be merged.
 *
 * OUT gets a JSON object a line: {"script": name, "status": "ok" or what went wrong,
 * "observations": [...]}. Frames are page frame numbers, -1 absent, -2 the zero page.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KSM "/sys/kernel/mm/ksm/"
#define PAGE 4096UL
#define BASE 0x100000UL
#define SLOT_PAGES 0x4000UL
#define N_SLOTS 64
#define N_PROCESSES 48
#define HUGE_PAGES 512
#define MAX_CONTENTS (1 << 20)
#define MANY_PAGES 100000000L
#define LONG_SLEEP_MS 3600000L
#define PRUNE_NEVER_MS 86400000L
#define DISTURBED 4		/* exit code */
#define PRESENT (1ULL << 63)
#define SWAPPED (1ULL << 62)
#define FRAME ((1ULL << 55) - 1)

enum op { OP_MAP, OP_WRITE, OP_READ, OP_UNMAP, OP_DONTNEED, OP_ADVISE, OP_UNADVISE, OP_FORK,
	  OP_MREMAP, OP_EXIT };

struct command {
	enum op op;
	int is_huge, child;
	unsigned long vpn, n, new_vpn;
};

struct worker {
	pid_t pid;			/* 0: not alive */
	int command[2], reply[2];
	char is_huge[N_SLOTS];
};

static struct worker workers[N_PROCESSES];
static uint32_t *contents;		/* shared with the workers: what to write */
static FILE *out;
static pid_t ksmd;
static long toggle;
static uint64_t zero_frame;
static char failure[256];		/* why the script cannot go on; "" while it can */
static char errors[4096];

static const char *const COUNTERS[] = {
	"pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_scanned",
	"pages_skipped", "full_scans", "ksm_zero_pages", "general_profit", "stable_node_chains",
	"stable_node_dups" };
#define N_COUNTERS (sizeof(COUNTERS) / sizeof(*COUNTERS))
static int counter_file[N_COUNTERS];
static long base_scanned, base_skipped, base_cow;

__attribute__((format(printf, 1, 2)))
static void die(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fprintf(stderr, "driver: ");
	vfprintf(stderr, format, list);
	fprintf(stderr, "\n");
	va_end(list);
	exit(1);
}

__attribute__((format(printf, 1, 2)))
static void fail(const char *format, ...)
{
	va_list list;

	if (failure[0])
		return;
	va_start(list, format);
	vsnprintf(failure, sizeof(failure), format, list);
	va_end(list);
}

/* Files. */

static int write_value(const char *path, long value)
{
	char text[32];
	int length = snprintf(text, sizeof(text), "%ld", value);
	int file = open(path, O_WRONLY);
	int error = 0;

	if (file < 0)
		return errno;
	if (write(file, text, length) != length)
		error = errno;
	close(file);
	return error;
}

static int set_knob(const char *name, long value)
{
	char path[256];

	snprintf(path, sizeof(path), KSM "%s", name);
	return write_value(path, value);
}

static int read_text(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY);
	size_t length = 0;
	ssize_t got;

	if (file < 0)
		return -1;
	while (length < size - 1 && (got = read(file, text + length, size - 1 - length)) > 0)
		length += got;
	close(file);
	text[length] = 0;
	return 0;
}

/* The number after a word that begins a line; -1 if there is none. */
static long field(const char *text, const char *name)
{
	size_t length = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, length))
			return strtol(line + length, NULL, 10);
	}
	return -1;
}

static long counter(unsigned int i)
{
	char text[32] = "";

	if (counter_file[i] < 0 || pread(counter_file[i], text, sizeof(text) - 1, 0) <= 0)
		return 0;
	return strtol(text, NULL, 10);
}

static long named_counter(const char *name)
{
	for (unsigned int i = 0; i < N_COUNTERS; i++)
		if (!strcmp(COUNTERS[i], name))
			return counter(i);
	die("no counter %s", name);
	return 0;
}

static long cow_ksm(void)
{
	static char text[65536];

	if (read_text("/proc/vmstat", text, sizeof(text)))
		die("no /proc/vmstat");
	return field(text, "cow_ksm ");
}

/* ksmd. */

static pid_t find_ksmd(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[300], text[64];
	pid_t found = 0;

	while ((entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);

		if (pid <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
		if (read_text(path, text, sizeof(text)) || text[0])
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		if (!read_text(path, text, sizeof(text)) && !strcmp(text, "ksmd\n"))
			found = pid;
	}
	closedir(proc);
	if (!found)
		die("no ksmd");
	return found;
}

static void ksmd_state(char *state, long *switches)
{
	char path[64], text[8192];
	const char *line;

	snprintf(path, sizeof(path), "/proc/%d/status", ksmd);
	if (read_text(path, text, sizeof(text)) || !(line = strstr(text, "\nState:\t")))
		die("no state of ksmd");
	*state = line[8];
	*switches = field(text, "voluntary_ctxt_switches:");
}

static long asleep(void)
{
	char state;
	long switches;

	for (ksmd_state(&state, &switches); state != 'S'; ksmd_state(&state, &switches))
		usleep(50);
	return switches;
}

static void poke(void)
{
	toggle ^= 1;
	if (set_knob("sleep_millisecs", LONG_SLEEP_MS + toggle))
		die("cannot set sleep_millisecs");
}

/* Wait until ksmd has slept again since it had `before` switches. */
static int wait_for_batch(long before)
{
	char state;
	long switches;

	for (long i = 0; i < 600000; i++) {
		ksmd_state(&state, &switches);
		if (switches > before && state == 'S')
			return 0;
		usleep(50);
	}
	return -1;
}

static void set_batch(long n_pages)
{
	static long current;

	if (current != n_pages && set_knob("pages_to_scan", n_pages))
		die("cannot set pages_to_scan");
	current = n_pages;
}

static void batch(long n_pages)
{
	long before;

	set_batch(n_pages);
	before = asleep();
	poke();
	if (wait_for_batch(before))
		fail("ksmd did not finish a batch");
}

static void drain_lru(void)
{
	static char *page;

	if (!page) {
		page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*page = 1;
	}
	madvise(page, PAGE, MADV_COLD);
}

/* In a worker. */

static uint64_t content_word(uint64_t c)
{
	uint64_t z = c + 0x9E3779B97F4A7C15ULL;

	if (c == 0)
		return 0;
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
	return z ^ (z >> 31);
}

static void *address(unsigned long vpn)
{
	return (void *)(vpn * PAGE);
}

/* How many pages of a block of 2 MiB are there; whether they are one huge page. */
static int block_pages(unsigned long block, int *is_huge)
{
	uint64_t entries[HUGE_PAGES];
	int file = open("/proc/self/pagemap", O_RDONLY);
	int n = 0;

	if (pread(file, entries, sizeof(entries), block * 8) != sizeof(entries))
		_exit(3);
	close(file);
	*is_huge = (entries[0] & FRAME) % HUGE_PAGES == 0;
	for (int i = 0; i < HUGE_PAGES; i++) {
		n += !!(entries[i] & PRESENT);
		*is_huge &= (entries[i] & FRAME) == (entries[0] & FRAME) + i;
	}
	*is_huge &= n == HUGE_PAGES;
	return n;
}

/* The mapping of this process that holds a page: [*start, *end). */
static void mapping_of(unsigned long vpn, unsigned long *start, unsigned long *end)
{
	static char text[65536];

	if (read_text("/proc/self/maps", text, sizeof(text)))
		_exit(3);
	for (char *line = text; line && *line; line = strchr(line, '\n'), line += !!line)
		if (sscanf(line, "%lx-%lx", start, end) == 2 && vpn * PAGE < *end) {
			*start /= PAGE;
			*end /= PAGE;
			return;
		}
	_exit(3);
}

static int is_covered(unsigned long block)
{
	unsigned long start, end;

	mapping_of(block, &start, &end);
	return start <= block && block + HUGE_PAGES <= end;
}

/* Piece by piece: before 6.17 a kernel moves pages of one mapping only. */
static int move_pages(const struct command *command)
{
	unsigned long vpn = command->vpn, stop = command->vpn + command->n, start, end;

	for (; vpn < stop; vpn = end) {
		size_t length;

		mapping_of(vpn, &start, &end);
		end = end < stop ? end : stop;
		length = (end - vpn) * PAGE;
		if (mremap(address(vpn), length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
			   address(command->new_vpn + vpn - command->vpn)) == MAP_FAILED)
			return -errno;
	}
	return 0;
}

static void fill(unsigned long vpn, uint64_t c)
{
	volatile uint64_t *word = address(vpn);
	uint64_t value = content_word(c);

	for (unsigned int i = 0; i < PAGE / sizeof(*word); i++)
		word[i] = value;
}

static int write_pages(const struct command *command)
{
	for (unsigned long i = 0; i < command->n; i++) {
		unsigned long vpn = command->vpn + i, block = vpn & -HUGE_PAGES;
		int is_huge, is_first = i == 0 || vpn == block;

		is_first = is_first && command->is_huge && !block_pages(block, &is_huge);
		fill(vpn, contents[i]);
		if (is_first && is_covered(block)) {
			block_pages(block, &is_huge);
			if (!is_huge)
				return -ENOMEM;
		}
	}
	return 0;
}

static int obey(const struct command *command)
{
	void *start = address(command->vpn);
	size_t length = command->n * PAGE;
	int result = 0;

	switch (command->op) {
	case OP_MAP:
		if (mmap(start, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
			 | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != start)
			return -errno;
		result = madvise(start, length, command->is_huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		break;
	case OP_WRITE:
		return write_pages(command);
	case OP_READ:
		for (unsigned long i = 0; i < command->n; i++)
			(void)*(volatile char *)address(command->vpn + i);
		break;
	case OP_UNMAP:
		result = munmap(start, length);
		break;
	case OP_DONTNEED:
		result = madvise(start, length, MADV_DONTNEED);
		break;
	case OP_ADVISE:
		result = madvise(start, length, MADV_MERGEABLE);
		break;
	case OP_UNADVISE:
		result = madvise(start, length, MADV_UNMERGEABLE);
		break;
	case OP_MREMAP:
		return move_pages(command);
	case OP_FORK:
	case OP_EXIT:
		break;
	}
	return result ? -errno : 0;
}

static void work(int p)
{
	struct command command;

	for (;;) {
		int result;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (read(workers[p].command[0], &command, sizeof(command)) != sizeof(command)
		    || command.op == OP_EXIT)
			_exit(0);
		if (command.op == OP_FORK) {
			result = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
			if (result == 0) {
				p = command.child;
				continue;
			}
			if (result < 0)
				result = -errno;
		} else {
			result = obey(&command);
		}
		if (write(workers[p].reply[1], &result, sizeof(result)) != sizeof(result))
			_exit(2);
	}
}

/* In the driver again. */

static void spawn(int p)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid == 0)
		work(p);
	workers[p].pid = pid;
	memset(workers[p].is_huge, 0, N_SLOTS);
}

static void finish(int p)
{
	struct command command = {.op = OP_EXIT};

	if (write(workers[p].command[1], &command, sizeof(command)) != sizeof(command))
		die("a pipe is broken");
	if (waitpid(workers[p].pid, NULL, 0) != workers[p].pid)
		die("waitpid: %s", strerror(errno));
	workers[p].pid = 0;
}

static int ask(int p, const struct command *command)
{
	struct pollfd answer = {.fd = workers[p].reply[0], .events = POLLIN};
	int result;

	if (!workers[p].pid) {
		fail("process %d is not alive", p);
		return -ESRCH;
	}
	if (write(workers[p].command[1], command, sizeof(*command)) != sizeof(*command))
		die("a pipe is broken");
	if (poll(&answer, 1, 60000) != 1
	    || read(answer.fd, &result, sizeof(result)) != sizeof(result))
		die("process %d does not answer", p);
	return result;
}

static char *is_huge(int p, unsigned long vpn)
{
	return &workers[p].is_huge[(vpn - BASE) / SLOT_PAGES % N_SLOTS];
}

static uint64_t frame_of_zero_page(void)
{
	char *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int file = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	(void)*(volatile char *)page;
	if (pread(file, &entry, 8, (uintptr_t)page / PAGE * 8) != 8 || !(entry & FRAME))
		die("frames are not readable");
	close(file);
	munmap(page, PAGE);
	return entry & FRAME;
}

static void print_frames(int p)
{
	static char text[1 << 20];
	static uint64_t entries[SLOT_PAGES];
	char path[64];
	unsigned long start, end;
	int file, n = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", workers[p].pid);
	if (read_text(path, text, sizeof(text)))
		die("no maps of process %d", p);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", workers[p].pid);
	file = open(path, O_RDONLY);
	fprintf(out, "[");
	for (char *line = text; line && *line; line = strchr(line, '\n'), line += !!line) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		start /= PAGE, end /= PAGE;
		if (start < BASE || end > BASE + N_SLOTS * SLOT_PAGES)
			continue;
		if (pread(file, entries, (end - start) * 8, start * 8)
		    != (ssize_t)(end - start) * 8)
			die("pagemap of process %d is short", p);
		fprintf(out, "%s[%lu,[", n++ ? "," : "", start);
		for (unsigned long i = 0; i < end - start; i++) {
			long frame = entries[i] & PRESENT ? (long)(entries[i] & FRAME) : -1;

			if (entries[i] & SWAPPED)
				fail("a page is swapped out or moves");
			if (frame == (long)zero_frame)
				frame = -2;
			fprintf(out, i ? ",%ld" : "%ld", frame);
		}
		fprintf(out, "]]");
	}
	fprintf(out, "]");
	close(file);
}

static void print_process(int p)
{
	static const char *const names[] = {"ksm_rmap_items ", "ksm_zero_pages ",
		"ksm_merging_pages ", "ksm_process_profit "};
	char path[64], text[1024];
	long merging = -1;

	snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", workers[p].pid);
	if (!read_text(path, text, sizeof(text)))
		merging = strtol(text, NULL, 10);
	fprintf(out, "{\"ksm_merging_pages\":%ld", merging);
	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", workers[p].pid);
	if (!read_text(path, text, sizeof(text)))
		for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++) {
			if (!strstr(text, names[i]))
				continue;
			if (!strcmp(names[i], "ksm_merging_pages ")) {
				if (field(text, names[i]) != merging)
					fail("two values of ksm_merging_pages");
				continue;
			}
			fprintf(out, ",\"%.*s\":%ld", (int)strlen(names[i]) - 1, names[i],
				field(text, names[i]));
		}
	fprintf(out, "}");
}

static void observe(int step, int is_first)
{
	int n = 0;

	fprintf(out, "%s{\"step\":%d,\"counters\":{", is_first ? "" : ",", step);
	for (unsigned int i = 0; i < N_COUNTERS; i++) {
		long value = counter(i);

		if (counter_file[i] < 0)
			continue;
		if (!strcmp(COUNTERS[i], "pages_scanned"))
			value -= base_scanned;
		if (!strcmp(COUNTERS[i], "pages_skipped"))
			value -= base_skipped;
		fprintf(out, "%s\"%s\":%ld", n++ ? "," : "", COUNTERS[i], value);
	}
	fprintf(out, "},\"cow_ksm\":%ld,\"processes\":{", cow_ksm() - base_cow);
	n = 0;
	for (int p = 1; p < N_PROCESSES; p++)
		if (workers[p].pid) {
			fprintf(out, "%s\"%d\":", n++ ? "," : "", p);
			print_process(p);
		}
	fprintf(out, "},\"frames\":{");
	n = 0;
	for (int p = 1; p < N_PROCESSES; p++)
		if (workers[p].pid) {
			fprintf(out, "%s\"%d\":", n++ ? "," : "", p);
			print_frames(p);
		}
	fprintf(out, "},\"errors\":[%s]}", errors);
	errors[0] = 0;
}

/* After a script, when all workers are gone: has somebody else mergeable memory? (From 6.14.) */
static void look_for_others(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[300], text[1024];

	while ((entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/ksm_stat", entry->d_name);
		if (atoi(entry->d_name) > 0 && !read_text(path, text, sizeof(text))
		    && strstr(text, "ksm_mergeable: yes")) {
			fprintf(stderr, "memory of process %s became mergeable while scripts ran\n",
				entry->d_name);
			exit(DISTURBED);
		}
	}
	closedir(proc);
}

/* Stop KSM, with nothing merged and no process registered, and ksmd away from its timed sleep. */
static void clear(void)
{
	long before;

	for (int p = 0; p < N_PROCESSES; p++)
		if (workers[p].pid)
			finish(p);
	if (set_knob("run", 2) || set_knob("run", 0))
		die("cannot set run");
	before = asleep();
	poke();
	/* It only notices that it is stopped; if it knew already it does not even wake. */
	for (int i = 0; i < 200; i++) {
		char state;
		long switches;

		ksmd_state(&state, &switches);
		if (switches > before && state == 'S')
			break;
		usleep(50);
	}
	for (unsigned int i = 0; i < N_COUNTERS; i++)
		if (strncmp(COUNTERS[i], "pages_s", 7) && counter(i))
			fail("%s is %ld after run=2", COUNTERS[i], counter(i));
	if (named_counter("pages_shared") || named_counter("pages_sharing"))
		fail("pages are merged after run=2");
}

static void begin(void)
{
	static const struct command map = {.op = OP_MAP, .vpn = BASE, .n = 1};
	static const struct command advise = {.op = OP_ADVISE, .vpn = BASE, .n = 1};
	long before;

	/* Refused while a process that exits still has merged pages. */
	for (int i = 0; set_knob("max_page_sharing", 256) == EBUSY && i < 100; i++)
		usleep(50000);
	if (set_knob("max_page_sharing", 256) || set_knob("use_zero_pages", 0)
	    || set_knob("stable_node_chains_prune_millisecs", PRUNE_NEVER_MS))
		die("cannot set the knobs");
	set_knob("merge_across_nodes", 1);
	set_knob("smart_scan", 1);
	set_batch(MANY_PAGES);
	spawn(0);
	if (ask(0, &map) || ask(0, &advise))
		die("process 0 failed");
	before = asleep();
	if (set_knob("run", 1))
		die("cannot set run");
	if (wait_for_batch(before) || named_counter("full_scans") != 1)
		fail("ksmd did not begin with one scan but %ld", named_counter("full_scans"));
	base_scanned = named_counter("pages_scanned");
	base_skipped = named_counter("pages_skipped");
	base_cow = cow_ksm();
	errors[0] = 0;
}

static void note_error(int error)
{
	size_t length = strlen(errors);

	if (error)
		snprintf(errors + length, sizeof(errors) - length, "%s\"%s\"", length ? "," : "",
			 strerrorname_np(error));
}

/* Contents: words `c`, `cxN` (N copies), `c+N` (c, c + 1, ...). */
static int read_contents(char *text, unsigned long n)
{
	unsigned long at = 0;

	for (char *word = strtok(text, " \n"); word; word = strtok(NULL, " \n")) {
		char *end;
		unsigned long c = strtoul(word, &end, 10), count = 1, slope = *end == '+';

		if (*end)
			count = strtoul(end + 1, NULL, 10);
		for (; count && at < n; count--, c += slope)
			contents[at++] = c;
	}
	return at == n ? 0 : -1;
}

static int is_command(const char *op, struct command *command)
{
	static const struct { const char *name; enum op op; } ops[] = {
		{"map", OP_MAP}, {"write", OP_WRITE}, {"read", OP_READ}, {"unmap", OP_UNMAP},
		{"dontneed", OP_DONTNEED}, {"advise", OP_ADVISE}, {"unadvise", OP_UNADVISE},
		{"mremap", OP_MREMAP}};

	for (unsigned int i = 0; i < sizeof(ops) / sizeof(*ops); i++)
		if (!strcmp(op, ops[i].name)) {
			command->op = ops[i].op;
			return 1;
		}
	return 0;
}

static void do_step(char *line, int *n_observations)
{
	struct command command = {0};
	char op[32], name[64], kind[16];
	int step, used, p, child, result;
	long value;

	if (sscanf(line, "%d %31s%n", &step, op, &used) != 2)
		die("bad line: %s", line);
	line += used;
	if (is_command(op, &command)) {
		if (sscanf(line, "%d %lu %lu%n", &p, &command.vpn, &command.n, &used) != 3
		    || p < 0 || p >= N_PROCESSES)
			die("bad step: %s %s", op, line);
		line += used;
		if (command.op == OP_MAP) {
			if (sscanf(line, "%15s", kind) != 1)
				die("bad step: %s", op);
			*is_huge(p, command.vpn) = !strcmp(kind, "huge");
		}
		command.is_huge = *is_huge(p, command.vpn);
		if (command.op == OP_WRITE
		    && (command.n > MAX_CONTENTS || read_contents(line, command.n)))
			die("bad contents in step %d", step);
		if (command.op == OP_MREMAP) {
			if (sscanf(line, "%lu", &command.new_vpn) != 1)
				die("bad step: %s", op);
			*is_huge(p, command.new_vpn) = command.is_huge;
		}
		result = ask(p, &command);
		if (result)
			fail("step %d: %s: %s", step, op, command.op == OP_WRITE
			     ? "no huge page could be had" : strerror(-result));
	} else if (!strcmp(op, "spawn")) {
		spawn(atoi(line));
	} else if (!strcmp(op, "exit")) {
		finish(atoi(line));
	} else if (sscanf(line, "%d %d", &p, &child) == 2 && !strcmp(op, "fork")) {
		command.op = OP_FORK;
		command.child = child;
		result = ask(p, &command);
		if (result <= 0) {
			fail("step %d: fork: %s", step, strerror(-result));
			return;
		}
		workers[child].pid = result;
		memcpy(workers[child].is_huge, workers[p].is_huge, N_SLOTS);
	} else if (!strcmp(op, "knob") && sscanf(line, "%63s %ld", name, &value) == 2) {
		note_error(set_knob(name, value));
	} else if (!strcmp(op, "run")) {
		note_error(set_knob("run", atoi(line)));
	} else if (!strcmp(op, "scan")) {
		value = named_counter("full_scans");
		/* ksmd drains too, but not when it goes on with a scan. */
		drain_lru();
		batch(MANY_PAGES);
		if (named_counter("full_scans") != value + 1)
			fail("step %d: %ld scans at once", step,
			     named_counter("full_scans") - value);
		observe(step, !(*n_observations)++);
	} else if (!strcmp(op, "scan_pages")) {
		drain_lru();
		batch(atoi(line));
		observe(step, !(*n_observations)++);
	} else if (!strcmp(op, "check")) {
		observe(step, !(*n_observations)++);
	} else {
		die("unknown step: %s %s", op, line);
	}
}

static void run_scripts(FILE *scripts)
{
	char *line = NULL;
	size_t size = 0;
	int n_observations = 0;

	while (getline(&line, &size, scripts) > 0) {
		if (!strncmp(line, "script ", 7)) {
			failure[0] = 0;
			line[strcspn(line, "\n")] = 0;
			fprintf(out, "{\"script\":\"%s\",\"observations\":[", line + 7);
			n_observations = 0;
			begin();
		} else if (!strcmp(line, "end\n")) {
			clear();
			look_for_others();
			fprintf(out, "],\"status\":\"%s\"}\n", failure[0] ? failure : "ok");
			fflush(out);
		} else if (!failure[0]) {
			do_step(line, &n_observations);
		}
	}
	free(line);
}

static void pin(cpu_set_t *before)
{
	cpu_set_t one, mine;
	int cpu = 0;

	sched_getaffinity(0, sizeof(mine), &mine);
	while (!CPU_ISSET(cpu, &mine))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one)
	    || sched_getaffinity(ksmd, sizeof(*before), before)
	    || sched_setaffinity(ksmd, sizeof(one), &one))
		die("sched_setaffinity: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	FILE *scripts = argc == 3 ? fopen(argv[1], "r") : NULL;
	cpu_set_t before;
	char path[128];

	out = argc == 3 ? fopen(argv[2], "w") : NULL;
	if (!scripts || !out)
		die("usage: driver SCRIPTS OUT");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	contents = mmap(NULL, MAX_CONTENTS * sizeof(*contents), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (contents == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	for (int p = 0; p < N_PROCESSES; p++)
		if (pipe2(workers[p].command, O_CLOEXEC) || pipe2(workers[p].reply, O_CLOEXEC))
			die("pipe: %s", strerror(errno));
	for (unsigned int i = 0; i < N_COUNTERS; i++) {
		snprintf(path, sizeof(path), KSM "%s", COUNTERS[i]);
		counter_file[i] = open(path, O_RDONLY | O_CLOEXEC);
	}
	zero_frame = frame_of_zero_page();
	ksmd = find_ksmd();
	pin(&before);
	clear();
	if (failure[0])
		die("%s", failure);
	run_scripts(scripts);
	sched_setaffinity(ksmd, sizeof(before), &before);
	if (fclose(out))
		die("cannot write: %s", strerror(errno));
	printf("all scripts done\n");
	return 0;
}
