// SPDX-License-Identifier: GPL-2.0
/* The interface: permissions, each error, reads of any size, and some thousands of random calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <linux/capability.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define N_FUZZ	4000
#define N_READS	600
#define N_INTERRUPTED	8
#define SIGNAL_SECONDS	20

static struct target target;
/* An address with nothing there. */
static void *volatile nowhere = (void *)16;

static void work(uint64_t *shared)
{
	char *at = anon(1500 * PAGE);
	int i;

	for (i = 0; i < 1500; i++)
		fill(at + i * PAGE, i);
	shared[0] = (uintptr_t)at;
}

/* 0 or the errno of a start on a new file. */
static int start_error(const void *start)
{
	int fd = open(DEVICE, O_RDONLY), error = 0;

	need(fd >= 0);
	if (ioctl(fd, PAGEHASH_IOC_START, start))
		error = errno;
	close(fd);
	return error;
}

/* Runs `what` in a child and returns its result, a small number. */
static int in_child(int (*what)(int), int argument)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	need(pid >= 0);
	if (!pid)
		_exit(what(argument));
	need(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static int start_on(int fd)
{
	struct pagehash_start start;

	start_of(&start, target.pid);
	return ioctl(fd, PAGEHASH_IOC_START, &start) ? errno : 0;
}

static void set_capabilities(uint64_t bits)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	int i;

	for (i = 0; i < 2; i++) {
		data[i].effective = data[i].permitted = bits >> 32 * i;
		data[i].inheritable = 0;
	}
	need(!syscall(SYS_capset, &header, data));
}

static int start_without_capabilities(int fd)
{
	set_capabilities(0);
	return start_on(fd);
}

static int start_with_all_but_ptrace(int fd)
{
	set_capabilities(((1ULL << 38) - 1) & ~(1ULL << CAP_SYS_PTRACE));
	return start_on(fd);
}

static int start_with_ptrace_only(int fd)
{
	set_capabilities(1ULL << CAP_SYS_PTRACE);
	return start_on(fd);
}

static int start_in_user_namespace(int fd)
{
	if (unshare(CLONE_NEWUSER))
		return 254;
	return start_on(fd);
}

static int start_as_user(int fd)
{
	need(!setuid(1000));
	return start_on(fd);
}

static int open_as_user(int unused)
{
	(void)unused;
	need(!setuid(1000));
	return open(DEVICE, O_RDONLY) < 0 ? errno : 0;
}

/* What has been started may be read by whoever is given the file. */
static int read_as_user(int fd)
{
	char bytes[4096];

	need(!setuid(1000));
	return read(fd, bytes, sizeof(bytes)) == sizeof(bytes) ? 0 : 1;
}

static void check_permissions(void)
{
	int fd = open(DEVICE, O_RDONLY);
	struct stat stat_;

	need(fd >= 0);
	need(!stat(DEVICE, &stat_));
	is(stat_.st_mode & 07777, 0600, "device has mode 0600");
	is(in_child(open_as_user, 0), EACCES, "another user cannot open the device");
	is(in_child(start_without_capabilities, fd), EPERM, "root without capabilities: EPERM");
	is(in_child(start_with_all_but_ptrace, fd), EPERM, "all capabilities but that: EPERM");
	is(in_child(start_with_ptrace_only, fd), 0, "CAP_SYS_PTRACE alone: may start");
	is(in_child(start_as_user, fd), EPERM, "a user with an open file: EPERM");
	is(in_child(start_in_user_namespace, fd), EPERM, "root of a user namespace: EPERM");
	is(in_child(start_on, fd), 0, "root: may start");
	is(in_child(read_as_user, fd), 0, "a started dump may be read by who has the file");
	close(fd);
}

static void check_errors(void)
{
	struct pagehash_start start;
	struct {
		struct pagehash_start start;
		uint8_t more[PAGE];
	} large;
	uint8_t page[2 * PAGE];
	int fd, i, status;
	pid_t pid;

#define CHECK(error, change, what) do { \
	start_of(&start, target.pid); \
	change; \
	is(start_error(&start), error, "start: %s", what); \
} while (0)
	CHECK(0, (void)0, "a right one");
	CHECK(0, start.pid = getpid(), "oneself");
	CHECK(EINVAL, start.size = 0, "size 0");
	CHECK(EINVAL, start.size = 63, "size 63");
	CHECK(E2BIG, start.size = 4097, "size 4097");
	CHECK(E2BIG, start.size = UINT_MAX, "largest size");
	for (i = 4; i < 32; i++)
		CHECK(EINVAL, start.flags = 1U << i, "an unknown flag");
	CHECK(EINVAL, start.reserved0 = 1, "reserved0");
	CHECK(EINVAL, start.reserved[0] = 1ULL << 63, "reserved[0]");
	CHECK(EINVAL, start.reserved[1] = 1, "reserved[1]");
	CHECK(EINVAL, start.start = 1, "start within a page");
	CHECK(EINVAL, start.end = 4097, "end within a page");
	CHECK(EINVAL, start.end = ~0ULL, "end within the last page");
	CHECK(EINVAL, start.end = 0, "empty range at 0");
	CHECK(EINVAL, (start.start = PAGE, start.end = PAGE), "empty range");
	CHECK(EINVAL, (start.start = 2 * PAGE, start.end = PAGE), "backward range");
	CHECK(0, start.start = 1ULL << 63, "a range above the top");
	CHECK(EINVAL, start.pid = 0, "pid 0");
	CHECK(EINVAL, start.pid = INT_MAX + 1U, "pid above the largest");
	CHECK(EINVAL, start.pid = UINT_MAX, "pid -1");
	CHECK(ESRCH, start.pid = INT_MAX, "the largest pid, which nobody has");
	CHECK(EINVAL, start.pid = 2, "a kernel thread");
	pid = fork();
	if (!pid)
		_exit(0);
	waitid(P_PID, pid, (siginfo_t *)page, WEXITED | WNOWAIT);
	CHECK(ESRCH, start.pid = pid, "a zombie");
	waitpid(pid, &status, 0);
	CHECK(ESRCH, start.pid = pid, "a process that is gone");

	/* A newer caller: longer, and what is appended is 0 or not. */
	memset(&large, 0, sizeof(large));
	start_of(&large.start, target.pid);
	large.start.size = 4096;
	is(start_error(&large), 0, "start: longer, 0 appended");
	large.more[4096 - 65] = 1;
	is(start_error(&large), E2BIG, "start: longer, something appended");
	large.start.size = 4095;
	is(start_error(&large), 0, "start: what is past the size is not looked at");

	is(start_error(NULL), EFAULT, "start: no argument");
	is(start_error((void *)~0xfffUL), EFAULT, "start: argument of the kernel");
	{
		char *edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		need(edge != MAP_FAILED && !munmap(edge + PAGE, PAGE));
		start_of(&start, target.pid);
		memcpy(edge + PAGE - 32, &start, 32);
		is(start_error(edge + PAGE - 32), EFAULT, "start: argument that ends too soon");
	}

	fd = open(DEVICE, O_RDWR);
	need(fd >= 0);
	is(ioctl(fd, PAGEHASH_IOC_ABI), 0x10000, "version is 1.0");
	ok(ioctl(fd, 0xb902) && errno == ENOTTY, "unknown ioctl: ENOTTY");
	ok(ioctl(fd, 0xc040b901) && errno == ENOTTY, "ioctl with another size: ENOTTY");
	ok(read(fd, page, 10) == -1 && errno == ENODATA, "read before start: ENODATA");
	ok(write(fd, page, 10) == -1 && errno == EINVAL, "write: EINVAL");
	ok(lseek(fd, 0, SEEK_SET) == -1 && errno == ESPIPE, "lseek: ESPIPE");
	ok(pread(fd, page, 10, 0) == -1 && errno == ESPIPE, "pread: ESPIPE");
	ok(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV,
	   "mmap: ENODEV");
	start_of(&start, target.pid);
	need(!ioctl(fd, PAGEHASH_IOC_START, &start));
	is(read(fd, page, 0), 0, "read of nothing");
	ok(read(fd, (void *)~0xfffUL, 4096) == -1 && errno == EFAULT, "read into the kernel: EFAULT");
	ok(read(fd, nowhere, 4096) == -1 && errno == EFAULT, "read to nowhere: EFAULT");
	is(read(fd, page, 8), 8, "nothing was lost by it");
	ok(!memcmp(page, "PAGEHASH", 8), "the magic");
	/* A bad start leaves the dump as it was. */
	start.flags = 1U << 31;
	ok(ioctl(fd, PAGEHASH_IOC_START, &start) == -1 && errno == EINVAL, "a bad start during a dump");
	is(read(fd, page, 4), 4, "goes on");
	is(page[0] | page[1] << 8, 1, "with the major version");
	close(fd);
}

/* Bytes of a dump, with what depends on time made equal. */
static void without_times(uint8_t *bytes, size_t n_bytes)
{
	struct pagehash_header *header = (void *)bytes;
	struct pagehash_trailer *trailer = (void *)(bytes + n_bytes - sizeof(*trailer));

	header->start_ns = trailer->start_ns = trailer->end_ns = 0;
	trailer->lock_max_ns = trailer->lock_total_ns = trailer->n_locks = 0;
}

static void check_short_reads(void)
{
	static const size_t sizes[] = { 1, 7, 31, 32, 33, 127, 4096, 100000, 1 << 22 };
	uint8_t *whole, *bytes;
	size_t i, n_whole, n_bytes, done;
	struct pagehash_start start;
	struct dump dump;
	int fd, n_reads;
	ssize_t n;

	start_of(&start, target.pid);
	fd = dump_open(&start);
	need(fd >= 0 && !read_all(fd, 1 << 20, &whole, &n_whole));
	need(!dump_parse(whole, n_whole, &dump));
	ok(dump.n_pages > 1500, "%zu pages", dump.n_pages);
	is(read(fd, &i, 1), 0, "after the end: end of file");
	is(read(fd, &i, 1), 0, "after the end: end of file, again");
	without_times(whole, n_whole);
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		/* The same file, begun again each time. */
		need(!ioctl(fd, PAGEHASH_IOC_START, &start));
		if (i % 2)
			need(read(fd, &done, 5) == 5 && !ioctl(fd, PAGEHASH_IOC_START, &start));
		need(!read_all(fd, sizes[i], &bytes, &n_bytes));
		without_times(bytes, n_bytes);
		ok(n_bytes == n_whole && !memcmp(bytes, whole, n_whole),
		   "the same bytes by reads of %zu", sizes[i]);
		free(bytes);
	}
	need(!ioctl(fd, PAGEHASH_IOC_START, &start));
	bytes = malloc(n_whole + (1 << 17));
	for (done = n_reads = 0;; done += n, n_reads++) {
		size_t size = n_reads < N_READS ? rand() % 100 : rand() % (1 << 17);

		/* Now and then to a bad place, which must lose nothing. */
		if (rand() % 8 == 0 && read(fd, nowhere, size + 1) != -1)
			break;
		n = read(fd, bytes + done, size + 1);
		if (n <= 0)
			break;
	}
	ok(n_reads >= N_READS, "%d reads of random sizes", n_reads);
	need(done == n_whole);
	without_times(bytes, done);
	ok(!memcmp(bytes, whole, n_whole), "give the same bytes");
	free(bytes);

	/* Half good, half bad: what could be given is given, the rest comes later. */
	need(!ioctl(fd, PAGEHASH_IOC_START, &start));
	bytes = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(bytes != MAP_FAILED && !munmap(bytes + PAGE, PAGE));
	n = read(fd, bytes + PAGE - 128, 300000);
	ok(n == 128 || n == -1, "a buffer that ends too soon: %zd", n);
	n = n < 0 ? 0 : n;
	is(read(fd, bytes, 8), 8, "then the next bytes");
	ok(!memcmp(bytes, whole + n, 8) || n == 0, "which are the right ones");
	close(fd);
	dump_free(&dump);
}

static volatile int n_alarms;

static void on_alarm(int number)
{
	(void)number;
	n_alarms++;
}

/*
 * Interrupted reads lose nothing. When an emulated timer fires is for the emulator to say: a whole
 * dump of this target may pass without. So dumps are taken until some reads have been interrupted.
 */
static void check_signals(void)
{
	struct itimerval timer = { .it_interval.tv_usec = 500, .it_value.tv_usec = 500 };
	struct sigaction action = { .sa_handler = on_alarm };
	int fd, n_dumps = 0, n_interrupted = 0;
	time_t end = time(NULL) + SIGNAL_SECONDS;
	const size_t room = 4 << 20;
	struct pagehash_start start;
	const char *wrong = NULL;
	struct dump dump;
	uint8_t *bytes;
	size_t n_bytes;
	ssize_t n;

	start_of(&start, target.pid);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (; !wrong && n_interrupted < N_INTERRUPTED && time(NULL) < end; n_dumps++) {
		do {
			fd = dump_open(&start);
		} while (fd == -EINTR);
		need(fd >= 0);
		bytes = malloc(room);
		/* The dump is smaller than that: a read before the last that returns was cut short. */
		for (n_bytes = 0; (n = read(fd, bytes + n_bytes, room - n_bytes)); ) {
			need(n > 0 || errno == EINTR);
			n_bytes += n > 0 ? n : 0;
			n_interrupted += n < 0 || n_bytes < PAGEHASH_TRAILER_SIZE ||
				*(uint64_t *)(bytes + n_bytes - PAGEHASH_TRAILER_SIZE) !=
				PAGEHASH_TRAILER_MAGIC;
		}
		close(fd);
		wrong = dump_parse(bytes, n_bytes, &dump);
		if (!wrong && dump.trailer->status != PAGEHASH_STATUS_COMPLETE)
			wrong = "status";
		dump_free(&dump);
	}
	memset(&timer, 0, sizeof(timer));
	setitimer(ITIMER_REAL, &timer, NULL);
	ok(!wrong, "dumps with signals are whole: %s", wrong ? wrong : "yes");
	ok(n_interrupted >= N_INTERRUPTED, "%d reads were interrupted, in %d dumps with %d signals",
	   n_interrupted, n_dumps, n_alarms);
}

static uint64_t some_number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 0x7fffffff, 0x80000000, 0xffffffff,
		0x7ffffffff000, 0x800000000000, 0xfffffffffffff000, ~0ULL,
	};

	switch (rand() % 3) {
	case 0:
		return numbers[rand() % 16];
	case 1:
		return (uint64_t)rand() << 12;
	default:
		return (uint64_t)rand() << 33 ^ (uint64_t)rand() << 8 ^ rand();
	}
}

/* What a start must answer, from the text of the header; -1 where it depends on the pid. */
static int expected(const struct pagehash_start *start, const uint8_t *more)
{
	uint32_t i;

	if (start->size < 64)
		return EINVAL;
	if (start->size > 4096)
		return E2BIG;
	for (i = 64; i < start->size; i++)
		if (more[i - 64])
			return E2BIG;
	if (start->flags > 15 || start->reserved0 || start->reserved[0] || start->reserved[1] ||
	    start->start % 4096 || start->end % 4096 || start->start >= start->end)
		return EINVAL;
	if (!start->pid || start->pid > INT_MAX)
		return EINVAL;
	if (start->pid == (uint32_t)target.pid)
		return 0;
	return -1;
}

static void check_fuzz(void)
{
	static struct {
		struct pagehash_start start;
		uint8_t more[4096];
	} large;
	int i, n_wrong = 0, n_started = 0, n_refused = 0, n_other = 0, fd[3];
	char bytes[70000];

	srand(20240607);
	for (i = 0; i < 3; i++)
		need((fd[i] = open(DEVICE, O_RDWR)) >= 0);
	for (i = 0; i < N_FUZZ; i++) {
		uint64_t *words = (void *)&large.start;
		int n_changes = rand() % 4, want, got, which = rand() % 3;
		ssize_t n;

		memset(&large, 0, sizeof(large));
		start_of(&large.start, target.pid);
		if (rand() % 4 == 0)
			large.start.size = 64 + rand() % 4033;
		while (n_changes--) {
			switch (rand() % 10) {
			case 0:
				large.start.size = some_number();
				break;
			case 1:
				large.start.flags = rand() % 2 ? rand() % 20 : some_number();
				break;
			case 2:
				large.start.pid = rand() % 2 ? rand() % 200 : some_number();
				break;
			case 3:
				large.start.start = some_number();
				break;
			case 4:
				large.start.end = some_number();
				break;
			case 5:
				large.more[rand() % 4032] = rand();
				break;
			case 6:
				words[rand() % 8] = some_number();
				break;
			case 7:
				words[rand() % 8] ^= 1ULL << rand() % 64;
				break;
			default:
				words[4 + rand() % 2] = some_number();	/* the key: anything goes */
			}
		}
		want = expected(&large.start, large.more);
		got = ioctl(fd[which], PAGEHASH_IOC_START, &large) ? errno : 0;
		if (want >= 0 ? got != want : got && got != EINVAL && got != ESRCH) {
			if (n_wrong++ < 5)
				diag("call %d: %d, not %d", i, got, want);
		}
		n_started += !got;
		n_refused += !!got;
		if (rand() % 4 == 0) {
			n = read(fd[which], bytes, rand() % sizeof(bytes));
			if (n < 0 && errno != ENODATA)
				n_wrong++;
		}
		if (rand() % 16 == 0) {
			unsigned int command = rand() % 2 ? 0xb900 + rand() % 256 :
					       (unsigned int)some_number();

			if (command != PAGEHASH_IOC_ABI && command != PAGEHASH_IOC_START &&
			    (command & 0xff00) == 0xb900) {
				n_other++;
				if (ioctl(fd[which], command, some_number()) != -1 ||
				    errno != ENOTTY)
					n_wrong++;
			}
		}
		if (rand() % 16 == 0) {
			n_other++;
			if (ioctl(fd[which], PAGEHASH_IOC_START, some_number() | 1ULL << 63) != -1 ||
			    errno != EFAULT)
				n_wrong++;
		}
		if (rand() % 64 == 0) {
			close(fd[which]);
			need((fd[which] = open(DEVICE, O_RDWR)) >= 0);
		}
	}
	for (i = 0; i < 3; i++)
		close(fd[i]);
	is(n_wrong, 0, "%d random calls: %d started, %d refused, %d others, none wrong", N_FUZZ, n_started,
	   n_refused, n_other);
	ok(n_started > N_FUZZ / 10 && n_refused > N_FUZZ / 10 && n_other > N_FUZZ / 20,
	   "the random calls were of all sorts");
}

int main(void)
{
	target_start(&target, work);
	check_permissions();
	check_errors();
	check_short_reads();
	check_signals();
	check_fuzz();
	target_kill(&target);
	return tap_done();
}
