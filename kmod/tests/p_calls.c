// SPDX-License-Identifier: GPL-2.0
/* Names, flags, modes, descriptors, permissions, every error, and the files of sysfs. */
#define _GNU_SOURCE
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "partition.h"

static char *own;	/* pages of this process */

static void test_names(void)
{
	char name[5001];
	int fd;

	is(error_of(ksm_open("", NEW_SYNC, 0600)), EINVAL, "an empty name");
	is(error_of(ksm_open(".", NEW_SYNC, 0600)), EINVAL, "the name .");
	is(error_of(ksm_open("..", NEW_SYNC, 0600)), EINVAL, "the name ..");
	is(error_of(ksm_open("a/b", NEW_SYNC, 0600)), EINVAL, "a name with /");
	is(error_of(ksm_open("/a", NEW_SYNC, 0600)), EINVAL, "a name that begins with /");
	memset(name, 'n', sizeof(name));
	name[64] = 0;
	is(error_of(ksm_open(name, NEW_SYNC, 0600)), ENAMETOOLONG, "a name of 64 bytes");
	is(error_of(ksm_unlink(name)), ENAMETOOLONG, "unlink: a name of 64 bytes");
	name[63] = 0;
	fd = ksm_open(name, NEW_SYNC, 0600);
	ok(fd >= 0, "a name of 63 bytes");
	ok(sysfs_exists(name), "has a directory");
	close(fd);
	is(error_of(ksm_unlink(name)), 0, "and is unlinked");
	name[63] = 'n';
	name[64] = 'n';
	name[5000] = 0;
	is(error_of(ksm_open(name, NEW_SYNC, 0600)), ENAMETOOLONG, "a name of 5000 bytes");
	name[70] = '/';
	name[80] = 0;
	is(error_of(ksm_open(name, NEW_SYNC, 0600)), EINVAL, "a long name with / at its end");
	is(error_of(ksm_open(NULL, NEW_SYNC, 0600)), EFAULT, "no name");
	is(error_of(ksm_unlink(NULL)), EFAULT, "unlink: no name");
	is(error_of(ksm_unlink("")), EINVAL, "unlink: an empty name");
	is(error_of(ksm_unlink("absent")), ENOENT, "unlink: no such name");
}

static void test_flags(void)
{
	int fd, other;

	is(error_of(ksm_open("f", RW_SYNC, 0600)), ENOENT, "no such partition");
	is(error_of(ksm_open("f", RW_SYNC | KSM_EXCL, 0600)), ENOENT, "the same with KSM_EXCL");
	is(error_of(ksm_open("f", O_ACCMODE | KSM_SYNC | KSM_CREAT, 0600)), EINVAL, "access mode 3");
	is(error_of(ksm_open("f", NEW_SYNC | 0x80, 0600)), EINVAL, "an unknown flag");
	is(error_of(ksm_open("f", NEW_SYNC | O_APPEND, 0600)), EINVAL, "a flag of open(2)");
	is(error_of(ksm_open("f", NEW_SYNC, 01600)), EINVAL, "a mode above 0777");
	ok(!sysfs_exists("f"), "none of these has made one");
	fd = ksm_open("f", NEW_SYNC, 0600);
	ok(fd >= 0, "KSM_CREAT | KSM_EXCL makes one");
	is(fcntl(fd, F_GETFD), FD_CLOEXEC, "its descriptor is close-on-exec");
	is(error_of(ksm_open("f", NEW_SYNC, 0600)), EEXIST, "KSM_CREAT | KSM_EXCL, and it exists");
	is(error_of(other = ksm_open("f", RW_SYNC | KSM_CREAT, 0600)), 0, "KSM_CREAT opens it");
	close(other);
	is(error_of(other = ksm_open("f", RW_SYNC | KSM_EXCL | O_CLOEXEC, 0600)), 0,
	   "so does KSM_EXCL without KSM_CREAT");
	close(other);
	is(error_of(other = ksm_open("f", O_RDWR, 0600)), 0, "and opening without KSM_SYNC");
	is(error_of(ksm_merge(other, getpid(), own, PAGE)), EOPNOTSUPP, "which cannot merge");
	is(error_of(ksm_unmerge(other, getpid(), own, PAGE)), EOPNOTSUPP, "nor unmerge");
	is(error_of(ksm_attach(other, getpid(), own, PAGE)), EOPNOTSUPP,
	   "nor attach to a synchronous partition");
	is(error_of(ksm_detach(fd, getpid(), own, PAGE)), EOPNOTSUPP, "nor detach");
	close(other);
	close(fd);
	ok(sysfs_exists("f"), "without descriptors it is still there");
	is(error_of(fd = ksm_open("f", RW_SYNC, 0)), 0, "and can be opened");
	close(fd);
	is(error_of(ksm_unlink("f")), 0, "until it is unlinked");
	ok(!sysfs_exists("f"), "its directory goes at once");
	is(error_of(ksm_unlink("f")), ENOENT, "unlinked twice");

	is(error_of(fd = ksm_open("g", O_RDWR | KSM_CREAT, 0600)), 0, "made without KSM_SYNC");
	is(error_of(ksm_open("g", RW_SYNC, 0600)), EOPNOTSUPP, "KSM_SYNC of one with a scanner");
	is(error_of(ksm_merge(fd, getpid(), own, PAGE)), EOPNOTSUPP, "merging in one with a scanner");
	is(sysfs_write("g", "merge", "1 4096 4096"), EOPNOTSUPP, "and by sysfs");
	close(fd);
	is(error_of(ksm_unlink("g")), 0, "unlinked");
}

static void test_access(void)
{
	struct ksm_partition_counters counters;
	int both = partition("acc"), reader, writer;

	reader = ksm_open("acc", O_RDONLY | KSM_SYNC, 0);
	writer = ksm_open("acc", O_WRONLY | KSM_SYNC, 0);
	need(reader >= 0 && writer >= 0);
	is(error_of(ksm_counters(both, &counters)), 0, "O_RDWR reads counters");
	is(error_of(ksm_counters(reader, &counters)), 0, "O_RDONLY reads counters");
	is(error_of(ksm_counters(writer, &counters)), EACCES, "O_WRONLY does not");
	is(error_of(ksm_merge(both, getpid(), own, PAGE)), 0, "O_RDWR merges");
	is(error_of(ksm_merge(writer, getpid(), own, PAGE)), 0, "O_WRONLY merges");
	is(error_of(ksm_merge(reader, getpid(), own, PAGE)), EACCES, "O_RDONLY does not");
	is(error_of(ksm_unmerge(writer, getpid(), own, PAGE)), 0, "O_WRONLY unmerges");
	is(error_of(ksm_unmerge(reader, getpid(), own, PAGE)), EACCES, "O_RDONLY does not");
	is(error_of(ksm_merge(reader, -1, own + 1, 0)), EACCES, "EACCES comes before the range");
	close(reader);
	reader = ksm_open("acc", O_RDONLY, 0);
	is(error_of(ksm_merge(reader, getpid(), own, PAGE)), EACCES, "and before KSM_SYNC");
	is(counters_of(both).calls, 3, "calls counts those that got to a process");
	close(reader);
	close(writer);
	close(both);
	need(!ksm_unlink("acc"));
}

static void test_ranges(void)
{
	struct ksm_partition_counts counts;
	int fd = partition("range"), status, plain;
	uint64_t all = ~0ULL;
	pid_t pid;

	is(error_of(ksm_merge(fd, getpid(), own + 1, PAGE)), EINVAL, "an address within a page");
	is(error_of(ksm_merge(fd, getpid(), own, PAGE + 1)), EINVAL, "a size that is no pages");
	is(error_of(ksm_merge(fd, getpid(), own, 0)), EINVAL, "size 0");
	is(error_of(ksm_merge(fd, getpid(), (void *)(all - 4095), 2 * PAGE)), EINVAL,
	   "a range that wraps");
	is(error_of(ksm_merge(fd, getpid(), (void *)(all - 4095), PAGE)), 0, "the last page of all");
	is(error_of(ksm_unmerge(fd, getpid(), own + 1, PAGE)), EINVAL, "the same of unmerge");
	is(error_of(ksm_merge(fd, 0, own, PAGE)), ESRCH, "pid 0");
	is(error_of(ksm_merge(fd, -1, own, PAGE)), ESRCH, "pid -1");
	is(error_of(ksm_merge(fd, 4000000, own, PAGE)), ESRCH, "no such process");
	is(error_of(ksm_unmerge(fd, 4000000, own, PAGE)), ESRCH, "no such process: unmerge");
	is(error_of(ksm_merge(fd, 4000000, own, 0)), EINVAL, "EINVAL comes before ESRCH");
	is(error_of(ksm_merge(fd, 2, own, PAGE)), EINVAL, "a kernel thread");
	pid = fork();
	if (!pid)
		_exit(0);
	waitid(P_PID, pid, NULL, WEXITED | WNOWAIT);
	is(error_of(ksm_merge(fd, pid, own, PAGE)), ESRCH, "a zombie");
	waitpid(pid, &status, 0);
	is(error_of(ksm_merge(fd, pid, own, PAGE)), ESRCH, "one that is gone");
	is(error_of(ksm_merge_counted(fd, getpid(), own, PAGE, (void *)8)), EFAULT,
	   "counts that cannot be written");
	is(error_of(ksm_merge_counted(fd, getpid(), own, PAGE, &counts)), 0, "counts");
	is(counts.n_requested, 1, "are told");
	is(error_of(ksm_merge(-1, getpid(), own, PAGE)), EBADF, "no descriptor");
	plain = open("/dev/null", O_RDWR);
	is(error_of(ksm_merge(plain, getpid(), own, PAGE)), ENOTTY, "another kind of file");
	close(plain);
	close(fd);
	is(error_of(ksm_merge(fd, getpid(), own, PAGE)), EBADF, "a closed descriptor");
	need(!ksm_unlink("range"));
}

static void test_structures(void)
{
	struct {
		struct ksm_partition_range range;
		uint64_t more[2];
	} argument = { .range = {
		.size = KSM_PARTITION_RANGE_SIZE, .pid = getpid(), .address = (uintptr_t)own,
		.length = PAGE,
	} };
	struct ksm_partition_open open_ = { .size = sizeof(open_), .flags = RW_SYNC | KSM_CREAT,
		.mode = 0600, .name = (uintptr_t)"struct" };
	struct ksm_partition_unlink unlink_ = { .size = sizeof(unlink_),
		.name = (uintptr_t)"struct" };
	struct ksm_partition_counters counters = { .size = 8 };
	struct ksm_partition_counts counts;
	int device = open("/dev/ksm_partition", O_RDWR), fd;

	need(device >= 0);
	is(ioctl(device, KSM_PARTITION_IOC_ABI), 0x10000, "the version");
	is(error_of(ioctl(device, 0xb94f, &argument)), ENOTTY, "an unknown request of the device");
	is(error_of(ioctl(device, KSM_PARTITION_IOC_MERGE, &argument)), ENOTTY,
	   "a merge without partition");
	is(error_of(ioctl(device, KSM_PARTITION_IOC_OPEN, 8)), EFAULT, "no argument");
	open_.reserved = 1;
	is(error_of(ioctl(device, KSM_PARTITION_IOC_OPEN, &open_)), EINVAL, "a reserved field");
	open_.reserved = 0;
	open_.size = 16;
	is(error_of(ioctl(device, KSM_PARTITION_IOC_OPEN, &open_)), EINVAL, "a short argument");
	open_.size = sizeof(open_);
	fd = ioctl(device, KSM_PARTITION_IOC_OPEN, &open_);
	ok(fd >= 0, "opened by hand");
	is(error_of(ioctl(fd, 0xb94f, &argument)), ENOTTY, "an unknown request of a partition");
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_OPEN, &open_)), ENOTTY, "a request of the device");
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), 0, "merged by hand");
	argument.range.size = KSM_PARTITION_RANGE_SIZE - 8;
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), EINVAL, "a short range");
	argument.range.size = sizeof(argument);
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), 0, "a long range of zeros");
	argument.more[1] = 1;
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), E2BIG, "a long range of more");
	argument.range.size = 4097;
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), E2BIG, "a very long range");
	argument.range.size = KSM_PARTITION_RANGE_SIZE;
	argument.range.flags = 1;
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), EINVAL, "an unknown flag");
	argument.range.flags = 0;
	memset(&counts, 0xee, sizeof(counts));
	argument.range.counts = (uintptr_t)&counts;
	argument.range.counts_size = 16;
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_MERGE, &argument)), 0, "short counts");
	ok(counts.n_requested == 1 && counts.n_absent == 0xeeeeeeeeeeeeeeeeULL, "get what has room");
	is(error_of(ioctl(fd, KSM_PARTITION_IOC_COUNTERS, &counters)), EINVAL, "short counters");
	close(fd);
	unlink_.flags = 1;
	is(error_of(ioctl(device, KSM_PARTITION_IOC_UNLINK, &unlink_)), EINVAL, "unlink: a flag");
	unlink_.flags = 0;
	is(error_of(ioctl(device, KSM_PARTITION_IOC_UNLINK, &unlink_)), 0, "unlinked by hand");
	close(device);
}

static int mode_of(const char *name, const char *file)
{
	struct stat status;
	char path[200];

	snprintf(path, sizeof(path), DIRECTORY "%s/%s", name, file);
	return stat(path, &status) ? -1 : status.st_mode & 0777;
}

static void test_sysfs(void)
{
	static const char *const reasons[] = {
		"mapping", "hugetlb", "locked", "userfaultfd", "mergeable", "thp", "shared",
		"zero_page", "swapped", "pinned", "busy", "changed", "foreign", "special", "limit",
		"memory",
	};
	char text[100], path[100];
	int fd, i, n = 0;

	umask(0027);
	fd = ksm_open("sys", NEW_SYNC, 0666);
	need(fd >= 0);
	is(counters_of(fd).mode, 0640, "the umask is taken from the mode");
	is(sysfs("sys", "owner"), 0, "owner");
	is(sysfs("sys", "group"), 0, "group");
	snprintf(path, sizeof(path), DIRECTORY "sys/mode");
	is(number_in(path, "0"), 640, "mode");
	is(sysfs("sys", "sync"), 1, "sync");
	is(mode_of("sys", "pages_shared"), 0440, "counters have the mode's read bits");
	is(mode_of("sys", "merge"), 0200, "merge has its write bits");
	is(mode_of("sys", "refusals/thp"), 0440, "so have refusals");
	for (i = 0; i < 16; i++) {
		snprintf(path, sizeof(path), "refusals/%s", reasons[i]);
		n += sysfs("sys", path) == 0;
	}
	is(n, KSM_PARTITION_REFUSED_N, "there is a file for each reason");
	snprintf(text, sizeof(text), "%d %#lx %lu\n", getpid(), (unsigned long)own, 8 * PAGE);
	is(sysfs_write("sys", "merge", text), 0, "a merge by sysfs");
	is(sysfs("sys", "calls"), 1, "is a call");
	is(sysfs("sys", "pages_shared"), 1, "and merges");
	is(sysfs("sys", "pages_sharing"), 7, "all of it");
	is(sysfs_write("sys", "unmerge", text), 0, "an unmerge by sysfs");
	is(sysfs("sys", "pages_sharing"), 0, "unmerges");
	is(sysfs_write("sys", "merge", "1 4096"), EINVAL, "two numbers");
	is(sysfs_write("sys", "merge", "1 4096 4096 x"), EINVAL, "more than three");
	is(sysfs_write("sys", "merge", "1 4096 0"), EINVAL, "size 0");
	is(sysfs_write("sys", "merge", "1 4097 4096"), EINVAL, "an address within a page");
	is(sysfs_write("sys", "merge", "1 -4096 4096"), EINVAL, "a negative address");
	is(sysfs_write("sys", "merge", "0 4096 4096"), ESRCH, "pid 0");
	is(sysfs_write("sys", "merge", "-5 4096 4096"), ESRCH, "pid -5");
	is(sysfs_write("sys", "merge", "4000000 4096 4096"), ESRCH, "no such process");
	is(sysfs_write("sys", "pages_to_scan", "10"), EOPNOTSUPP, "no scanner to set");
	is(sysfs_write("sys", "pages_shared", "10"), EACCES, "counters cannot be written");
	close(fd);
	need(!ksm_unlink("sys"));

	umask(0);
	fd = ksm_open("all", NEW_SYNC, 0777);
	need(fd >= 0);
	is(mode_of("all", "refusals/thp"), 0444, "all may read where the mode says so");
	is(mode_of("all", "merge"), 0220, "sysfs has no files that all may write to");
	close(fd);
	need(!ksm_unlink("all"));
	fd = ksm_open("none", NEW_SYNC, 0);
	need(fd >= 0);
	is(mode_of("none", "merge"), 0200, "without permission bits, files are the owner's");
	is(error_of(ksm_merge(fd, getpid(), own, PAGE)), 0, "and the creator may do all");
	close(fd);
	need(!ksm_unlink("none"));
	ok(!access("/sys/kernel/mm/ksm/run", F_OK), "the kernel's own files are there");
}

/* Runs as somebody without privileges; the checks are done here, by the results in `shared`. */
static void as_user(uid_t uid, gid_t gid, void (*what)(int *results), int *results)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		if (setgroups(0, NULL) || setgid(gid) || setuid(uid))
			_exit(1);
		/* Changing ids makes it not dumpable; being looked at is what this is about. */
		prctl(PR_SET_DUMPABLE, 1);
		what(results);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	need(!status);
}

static int root_fd;

static void stranger(int *r)
{
	char *mine = anon(16 * PAGE);
	int fd;

	*r++ = error_of(ksm_open("p600", O_RDONLY, 0));
	*r++ = error_of(ksm_open("p644", O_RDONLY | KSM_SYNC, 0));
	*r++ = error_of(ksm_open("p644", RW_SYNC, 0));
	*r++ = error_of(ksm_open("p644", O_WRONLY | KSM_SYNC, 0));
	*r++ = error_of(ksm_open("p602", O_WRONLY | KSM_SYNC, 0));
	*r++ = error_of(ksm_open("p602", O_RDONLY | KSM_SYNC, 0));
	*r++ = error_of(ksm_unlink("p602"));
	memset(mine, 1, 16 * PAGE);
	fd = ksm_open("p602", O_WRONLY | KSM_SYNC, 0);
	*r++ = error_of(ksm_merge(fd, getpid(), mine, 16 * PAGE));
	*r++ = error_of(ksm_merge(fd, 1, mine, PAGE));
	*r++ = error_of(ksm_unmerge(fd, 1, mine, PAGE));
	/* A descriptor of root's does not make one root. */
	*r++ = error_of(ksm_merge(root_fd, 1, mine, PAGE));
	*r++ = error_of(ksm_merge(root_fd, getpid(), mine, PAGE));
	*r++ = error_of(fd = ksm_open("mine", NEW_SYNC, 0400));
	*r++ = error_of(ksm_merge(fd, getpid(), mine, PAGE));
	*r++ = error_of(ksm_open("mine", RW_SYNC, 0));
	*r++ = sysfs_write("p644", "merge", "1 4096 4096");
	*r++ = sysfs_write("p602", "merge", "1 4096 4096");
	*r++ = access(PARAMETERS "allow_merge", W_OK) ? errno : 0;
	/* Root of a user namespace of one's own is nobody outside of it. */
	*r++ = unshare(CLONE_NEWUSER) ? errno : error_of(ksm_merge(root_fd, 1, mine, PAGE));
	*r++ = error_of(ksm_open("p600", O_RDONLY, 0));
}

static void by_group(int *r)
{
	*r++ = error_of(ksm_open("group", O_RDONLY, 0));
	*r++ = error_of(ksm_open("group", O_RDWR, 0));
	*r++ = sysfs("group", "calls") < 0;
	*r++ = error_of(ksm_unlink("group"));
}

static void owner(int *r)
{
	*r++ = error_of(ksm_open("mine", O_RDONLY | KSM_SYNC, 0));
	*r++ = error_of(ksm_unlink("mine"));
}

static void test_permissions(void)
{
	int *r = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	need(r != MAP_FAILED);
	close(ksm_open("p600", NEW_SYNC, 0600));
	close(ksm_open("p644", NEW_SYNC, 0644));
	root_fd = ksm_open("p602", NEW_SYNC, 0602);
	as_user(1000, 1000, stranger, r);
	is(r[0], EACCES, "mode 0600: no reading by others");
	is(r[1], 0, "mode 0644: reading by others");
	is(r[2], EACCES, "mode 0644: but no writing as well");
	is(r[3], EACCES, "mode 0644: nor writing alone");
	is(r[4], 0, "mode 0602: writing by others");
	is(r[5], EACCES, "mode 0602: but no reading");
	is(r[6], EACCES, "unlinking what is somebody else's");
	is(r[7], 0, "anybody may merge their own memory where they may write");
	is(r[8], EPERM, "but not another process's");
	is(r[9], EPERM, "nor unmerge it");
	is(r[10], EPERM, "not with a descriptor of root's either");
	is(r[11], 0, "with which they may merge their own");
	is(r[12], 0, "anybody may make a partition");
	is(r[13], 0, "and merge in it, whatever its mode");
	is(r[14], EACCES, "but not open it again");
	is(r[15], EACCES, "sysfs: no writing by mode 0644");
	is(r[16], EACCES, "sysfs: no writing by others at all");
	is(r[17], EACCES, "allow_merge is root's");
	is(r[18], EPERM, "a user namespace of one's own does not help");
	is(r[19], EACCES, "nor with permission bits");
	is(sysfs("mine", "owner"), 1000, "its owner");
	is(sysfs("mine", "group"), 1000, "and group");
	as_user(1001, 1001, owner, r);
	is(r[0], EACCES, "another one may not open it");
	is(r[1], EACCES, "nor unlink it");
	as_user(1000, 1000, owner, r);
	is(r[0], 0, "the owner may open it for reading");
	is(r[1], 0, "and unlink it");
	close(root_fd);

	need(!setegid(500));
	close(ksm_open("group", NEW_SYNC, 0640));
	need(!setegid(0));
	is(sysfs("group", "group"), 500, "the group is the file system's");
	as_user(1001, 500, by_group, r);
	is(r[0], 0, "mode 0640: reading by the group");
	is(r[1], EACCES, "mode 0640: no writing");
	is(r[2], 0, "mode 0640: counters in sysfs, too");
	is(r[3], EACCES, "unlinking is the owner's");
	is(error_of(ksm_unlink("group")), 0, "CAP_FOWNER may");
	need(!ksm_unlink("p600") && !ksm_unlink("p644") && !ksm_unlink("p602"));
}

static void test_off(void)
{
	int fd = partition("off");

	is(error_of(ksm_merge(fd, getpid(), own, 8 * PAGE)), 0, "merged");
	allow(false);
	is(error_of(ksm_merge(fd, getpid(), own, PAGE)), EPERM, "allow_merge=0: merge");
	is(error_of(ksm_open("off", RW_SYNC, 0)), EPERM, "allow_merge=0: open");
	is(sysfs_write("off", "merge", "1 4096 4096"), EPERM, "allow_merge=0: merge by sysfs");
	is(counters_of(fd).pages_sharing, 7, "allow_merge=0: counters are there");
	is(error_of(ksm_unmerge(fd, getpid(), own, 8 * PAGE)), 0, "allow_merge=0: unmerge works");
	is(counters_of(fd).pages_sharing, 0, "and unmerges");
	is(error_of(ksm_unlink("off")), 0, "allow_merge=0: unlink works");
	allow(true);
	close(fd);
}

static void test_many(void)
{
	struct rlimit before, few;
	char name[32];
	int i, fd;

	need(!getrlimit(RLIMIT_NOFILE, &before));
	few = before;
	few.rlim_cur = 8;
	need(!setrlimit(RLIMIT_NOFILE, &few));
	for (i = 0, fd = 0; fd >= 0 && i < 20; i++)
		fd = ksm_open("many", RW_SYNC | KSM_CREAT, 0600);
	is(errno, EMFILE, "no more descriptors");
	need(!setrlimit(RLIMIT_NOFILE, &before));
	for (i = 3; i < 20; i++)
		close(i);
	is(error_of(ksm_unlink("many")), 0, "and none is lost");
	for (i = 0; i < KSM_PARTITION_MAX + 1; i++) {
		snprintf(name, sizeof(name), "many%d", i);
		fd = ksm_open(name, NEW_SYNC, 0600);
		if (fd < 0)
			break;
		close(fd);
	}
	is(i, KSM_PARTITION_MAX, "so many partitions may be");
	is(errno, ENOSPC, "and no more");
	for (i = 0; i < KSM_PARTITION_MAX; i++) {
		snprintf(name, sizeof(name), "many%d", i);
		if (ksm_unlink(name))
			break;
	}
	is(i, KSM_PARTITION_MAX, "all are unlinked");
}

int main(void)
{
	int fd;

	umask(0);
	own = anon(8 * PAGE);
	memset(own, 7, 8 * PAGE);
	is(number_in(PARAMETERS "allow_merge", "N") , 0, "merging is off when the module is loaded");
	is(error_of(ksm_open("early", NEW_SYNC, 0600)), EPERM, "no partition can be made then");
	is(error_of(ksm_unlink("early")), ENOENT, "unlink looks for it");
	allow(true);
	test_names();
	test_flags();
	test_access();
	test_ranges();
	test_structures();
	test_sysfs();
	test_permissions();
	test_off();
	test_many();
	fd = partition("left");
	close(fd);
	allow(false);
	return tap_done();
}
