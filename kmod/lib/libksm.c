// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
#define _GNU_SOURCE
#include "libksm.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEVICE	"/dev/ksm_partition"
#define SPLIT	"/sys/kernel/debug/split_huge_pages"

/* One request to the device, which is opened for it: opening costs nothing there. */
static int device_ioctl(unsigned long command, void *argument)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC), ret, error;

	if (fd < 0)
		return -1;
	ret = ioctl(fd, command, argument);
	error = errno;
	close(fd);
	errno = error;
	return ret;
}

int ksm_open(const char *name, int flags, mode_t mode)
{
	struct ksm_partition_open open = {
		.size = sizeof(open),
		.flags = flags,
		.mode = mode,
		.name = (uintptr_t)name,
	};

	return device_ioctl(KSM_PARTITION_IOC_OPEN, &open);
}

int ksm_unlink(const char *name)
{
	struct ksm_partition_unlink unlink = {
		.size = sizeof(unlink),
		.name = (uintptr_t)name,
	};

	return device_ioctl(KSM_PARTITION_IOC_UNLINK, &unlink);
}

static int range_ioctl(unsigned long command, int fd, pid_t pid, void *addr, size_t size,
		       struct ksm_partition_counts *counts)
{
	struct ksm_partition_range range = {
		.size = sizeof(range),
		.pid = pid,
		.address = (uintptr_t)addr,
		.length = size,
		.counts_size = counts ? sizeof(*counts) : 0,
		.counts = (uintptr_t)counts,
	};

	return ioctl(fd, command, &range);
}

int ksm_merge(int fd, pid_t pid, void *addr, size_t size)
{
	return range_ioctl(KSM_PARTITION_IOC_MERGE, fd, pid, addr, size, NULL);
}

int ksm_unmerge(int fd, pid_t pid, void *addr, size_t size)
{
	return range_ioctl(KSM_PARTITION_IOC_UNMERGE, fd, pid, addr, size, NULL);
}

int ksm_merge_counted(int fd, pid_t pid, void *addr, size_t size,
		      struct ksm_partition_counts *counts)
{
	return range_ioctl(KSM_PARTITION_IOC_MERGE, fd, pid, addr, size, counts);
}

int ksm_unmerge_counted(int fd, pid_t pid, void *addr, size_t size,
			struct ksm_partition_counts *counts)
{
	return range_ioctl(KSM_PARTITION_IOC_UNMERGE, fd, pid, addr, size, counts);
}

int ksm_attach(int fd, pid_t pid, void *addr, size_t size)
{
	return range_ioctl(KSM_PARTITION_IOC_ATTACH, fd, pid, addr, size, NULL);
}

int ksm_detach(int fd, pid_t pid, void *addr, size_t size)
{
	return range_ioctl(KSM_PARTITION_IOC_DETACH, fd, pid, addr, size, NULL);
}

int ksm_counters(int fd, struct ksm_partition_counters *counters)
{
	memset(counters, 0, sizeof(*counters));
	counters->size = sizeof(*counters);
	return ioctl(fd, KSM_PARTITION_IOC_COUNTERS, counters);
}

int ksm_split(pid_t pid, void *addr, size_t size)
{
	char text[80];
	int fd, length, error;
	ssize_t ret;

	fd = open(SPLIT, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	length = snprintf(text, sizeof(text), "%d,%#zx,%#zx", pid, (size_t)addr,
			  (size_t)addr + size);
	ret = write(fd, text, length);
	error = errno;
	close(fd);
	errno = error;
	return ret < 0 ? -1 : 0;
}
