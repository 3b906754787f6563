/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * libksm: Selective KSM for C programs. Two files, no state but one descriptor of /dev/ksm_partition;
 * thread-safe. Each function returns -1 and sets errno on failure, as system calls do; the errors are
 * in <planner/ksm_partition.h>, and ENXIO or ENOENT where the module is not loaded.
 */
#ifndef LIBKSM_H
#define LIBKSM_H

#include <fcntl.h>
#include <stddef.h>
#include <sys/types.h>

#include <planner/ksm_partition.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The calls of the proposal. */

/*
 * Opens the partition `name`, or with KSM_CREAT makes it. flags: O_RDONLY, O_WRONLY or O_RDWR, with
 * KSM_SYNC, KSM_CREAT, KSM_EXCL, O_CLOEXEC; mode: permission bits of a new one, less the umask.
 * Returns a descriptor, always close-on-exec; close(2) closes it.
 */
int ksm_open(const char *name, int flags, mode_t mode);
/* Removes the name at once; the partition goes with its last descriptor. */
int ksm_unlink(const char *name);
/* Merges, or unmerges, [addr, addr + size) of process `pid` in the partition, before it returns. */
int ksm_merge(int fd, pid_t pid, void *addr, size_t size);
int ksm_unmerge(int fd, pid_t pid, void *addr, size_t size);

/* Extensions. */

/* The same, telling what was done; counts may be NULL. It is filled in on EINTR and ENOMEM, too. */
int ksm_merge_counted(int fd, pid_t pid, void *addr, size_t size,
		      struct ksm_partition_counts *counts);
int ksm_unmerge_counted(int fd, pid_t pid, void *addr, size_t size,
			struct ksm_partition_counts *counts);
/* Adds to, or removes from, what the scanner of a partition without KSM_SYNC looks at. */
int ksm_attach(int fd, pid_t pid, void *addr, size_t size);
int ksm_detach(int fd, pid_t pid, void *addr, size_t size);
/* The partition's counters. */
int ksm_counters(int fd, struct ksm_partition_counters *counters);
/*
 * Splits huge pages of [addr, addr + size) of process `pid` (any pages but those in use by
 * others), so that they can be merged. Needs root, debugfs at /sys/kernel/debug and a kernel with
 * its split_huge_pages file; the kernel may make new ones: MADV_NOHUGEPAGE prevents that.
 */
int ksm_split(pid_t pid, void *addr, size_t size);

#ifdef __cplusplus
}
#endif

#endif
