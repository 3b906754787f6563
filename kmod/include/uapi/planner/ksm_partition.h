/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef _UAPI_PLANNER_KSM_PARTITION_H
#define _UAPI_PLANNER_KSM_PARTITION_H

/*
 * Selective KSM by /dev/ksm_partition, ABI 1.0
 * ============================================
 *
 * Named partitions of memory in which equal pages may be merged, and merging inside a call: the
 * proposal "Selective KSM" of January 2025, as ioctls. The C library (kmod/lib/libksm.h) has the
 * four calls of the proposal under their names; docs/selective-ksm.md has what it all means, and
 * what the module cannot do.
 *
 *	ksm_open(name, flags, mode)	KSM_PARTITION_IOC_OPEN on the device, returns a descriptor
 *	ksm_unlink(name)		KSM_PARTITION_IOC_UNLINK on the device
 *	ksm_merge(fd, pid, addr, size)	KSM_PARTITION_IOC_MERGE on a partition's descriptor
 *	ksm_unmerge(fd, pid, addr, size) KSM_PARTITION_IOC_UNMERGE, the same
 *
 * and, of our own: KSM_PARTITION_IOC_ATTACH and _DETACH (what a partition's background scanner
 * looks at), KSM_PARTITION_IOC_COUNTERS, KSM_PARTITION_IOC_ABI (no argument; returns
 * KSM_PARTITION_ABI_MAJOR << 16 | KSM_PARTITION_ABI_MINOR).
 *
 * Flags and mode
 * --------------
 *
 * The access mode (O_RDONLY, O_WRONLY, O_RDWR) is in the low two bits of `flags`, as for
 * shm_open(3), and `mode` holds permission bits only: the proposal puts both into `mode`, where
 * S_IXUSR ... and O_RDWR would collide. O_CLOEXEC may be given; descriptors are close-on-exec with
 * or without, as those of shm_open are. Reading (O_RDONLY, O_RDWR) is for counters, writing
 * (O_WRONLY, O_RDWR) for everything else. `mode` less the umask is a new partition's; its creator
 * gets the access asked for whatever it says.
 *
 * KSM_SYNC of the open that creates a partition makes it synchronous. Created without, it has a
 * background scanner, which merges in the ranges that are attached. Merging by a call needs
 * KSM_SYNC of this open, too.
 *
 * A partition lives until it has been unlinked and its last descriptor is closed. Then its table is
 * dropped: what is merged stays merged, in the frames it is in, and nothing is merged into these
 * any more.
 *
 * Errors
 * ------
 *
 * OPEN:	EPERM	merging is off: the module's parameter allow_merge is 0
 *		EINVAL	name empty, ".", ".." or with "/"; unknown flag; mode & ~0777
 *		ENAMETOOLONG	name above 63 bytes
 *		ENOENT	no such partition, and no KSM_CREAT
 *		EEXIST	with KSM_CREAT | KSM_EXCL
 *		EACCES	by the permission bits (CAP_DAC_OVERRIDE passes)
 *		EOPNOTSUPP	KSM_SYNC, and the partition has a scanner
 *		ENOSPC	KSM_PARTITION_MAX partitions exist
 *		EMFILE, ENFILE, ENOMEM, EFAULT
 * UNLINK:	EINVAL, ENAMETOOLONG, ENOENT, EFAULT
 *		EACCES	neither the owner nor CAP_FOWNER
 * MERGE, UNMERGE, ATTACH, DETACH, in this order:
 *		EFAULT, EINVAL, E2BIG	the argument itself (see "Structures")
 *		EACCES	opened O_RDONLY
 *		EOPNOTSUPP	MERGE, UNMERGE: opened without KSM_SYNC; ATTACH, DETACH: there is no
 *			scanner, because the partition is synchronous or has been unlinked
 *		EINVAL	address or length not a multiple of 4096, length 0, address + length wraps
 *		ESRCH	no such process, or it has no memory any more
 *		EINVAL	a kernel thread
 *		EPERM	MERGE, ATTACH: allow_merge is 0; all: the process is another one, and the
 *			caller lacks CAP_SYS_PTRACE in its user namespace
 *		EINTR	a signal came; walked_to tells how far it got
 *		ENOMEM
 * COUNTERS:	EACCES	opened O_WRONLY
 *
 * Pages that cannot be merged are no error: they are counted by reason. EINTR and ENOMEM leave
 * counts of what was done.
 *
 * What a call counts
 * ------------------
 *
 * MERGE, for the pages of [address, address + length):
 *
 *	n_requested = n_absent + n_already + n_merged + n_candidates + n_volatile + sum of refused
 *
 * Pages are looked at in ascending order. One that equals a merged page of the partition is merged
 * with it. Else, one that equals a candidate is merged with that (n_merged counts the page,
 * n_partners the candidate, which was counted in n_candidates when it became one). Else, it becomes
 * a candidate. UNMERGE: n_requested = n_absent + n_already + n_unmerged + sum of refused; candidates
 * of the range are forgotten. ATTACH, DETACH: n_requested, and n_already pages that were attached,
 * or n_absent that were not.
 *
 * Structures
 * ----------
 *
 * Arguments begin with their size. A smaller one than the first version's is EINVAL; a larger one is
 * E2BIG unless what follows is all 0. Unknown flags and reserved fields that are not 0 are EINVAL.
 * Structures only grow at their ends; numbers are never used again.
 */

#include <linux/types.h>

#define KSM_PARTITION_ABI_MAJOR	1
#define KSM_PARTITION_ABI_MINOR	0

#define KSM_PARTITION_PAGE_BYTES	4096
/* Bytes of a name, without the terminator. */
#define KSM_PARTITION_NAME_MAX		63
/* Partitions at a time. */
#define KSM_PARTITION_MAX		1024

/* Flags of ksm_open, beside O_RDONLY, O_WRONLY, O_RDWR and O_CLOEXEC. */
#define KSM_SYNC	0x10
#define KSM_CREAT	0x20
#define KSM_EXCL	0x40

/* _IO(0xb9, 0x40) and so on; the size of the argument is inside it. */
#define KSM_PARTITION_IOC_ABI		0xb940
#define KSM_PARTITION_IOC_OPEN		0xb941
#define KSM_PARTITION_IOC_UNLINK	0xb942
#define KSM_PARTITION_IOC_MERGE		0xb943
#define KSM_PARTITION_IOC_UNMERGE	0xb944
#define KSM_PARTITION_IOC_ATTACH	0xb945
#define KSM_PARTITION_IOC_DETACH	0xb946
#define KSM_PARTITION_IOC_COUNTERS	0xb947

/*
 * Why a page was not merged: index into refused[]. The first five are of the mapping and count the
 * pages of its extent, present or not.
 */
#define KSM_PARTITION_REFUSED_MAPPING		0	/* of a file, shared, a device's, or special */
#define KSM_PARTITION_REFUSED_HUGETLB		1
#define KSM_PARTITION_REFUSED_LOCKED		2	/* mlocked */
#define KSM_PARTITION_REFUSED_USERFAULTFD	3
#define KSM_PARTITION_REFUSED_MERGEABLE		4	/* VM_MERGEABLE, or merged by KSM */
#define KSM_PARTITION_REFUSED_THP		5	/* part of a huge page: split it first */
#define KSM_PARTITION_REFUSED_SHARED		6	/* mapped more than once: since a fork */
#define KSM_PARTITION_REFUSED_ZERO_PAGE		7	/* the kernel's shared page of zeros */
#define KSM_PARTITION_REFUSED_SWAPPED		8	/* in swap, or changing its frame */
#define KSM_PARTITION_REFUSED_PINNED		9	/* for DMA */
#define KSM_PARTITION_REFUSED_BUSY		10	/* somebody has it in hand; try again */
#define KSM_PARTITION_REFUSED_CHANGED		11	/* written while it was looked at */
#define KSM_PARTITION_REFUSED_FOREIGN		12	/* merged in another partition */
#define KSM_PARTITION_REFUSED_SPECIAL		13	/* not anonymous memory, or bad memory */
#define KSM_PARTITION_REFUSED_LIMIT		14	/* max_pages merged pages exist */
#define KSM_PARTITION_REFUSED_MEMORY		15	/* no memory, or none in the cgroup */
#define KSM_PARTITION_REFUSED_N			16
#define KSM_PARTITION_REFUSED_MAX		20

/* What takes time: index into cost_n[] (how often) and cost_ns[]. */
#define KSM_PARTITION_COST_WALK		0	/* entries of page tables looked at */
#define KSM_PARTITION_COST_HASH		1	/* pages hashed */
#define KSM_PARTITION_COST_COMPARE	2	/* pairs of pages compared before merging */
#define KSM_PARTITION_COST_COPY		3	/* merged pages made */
#define KSM_PARTITION_COST_MERGE	4	/* page-table entries changed, with the final compare */
#define KSM_PARTITION_COST_REFUSE	5	/* the same, given up: pinned, busy, changed */
#define KSM_PARTITION_COST_UNMERGE	6	/* copies on write made by UNMERGE */
#define KSM_PARTITION_COST_N		7
#define KSM_PARTITION_COST_MAX		8

/* flags of struct ksm_partition_counters */
#define KSM_PARTITION_IS_SYNC		(1U << 0)
#define KSM_PARTITION_IS_LINKED		(1U << 1)	/* it has its name still */
#define KSM_PARTITION_IS_ALL		0x3U

/**
 * struct ksm_partition_open - argument of OPEN
 * @size:	sizeof(struct ksm_partition_open)
 * @flags:	access mode, KSM_SYNC, KSM_CREAT, KSM_EXCL, O_CLOEXEC
 * @mode:	permission bits
 * @reserved:	0
 * @name:	address of a string
 */
struct ksm_partition_open {
	__u32 size;
	__u32 flags;
	__u32 mode;
	__u32 reserved;
	__u64 name;
};

/**
 * struct ksm_partition_unlink - argument of UNLINK
 * @size:	sizeof(struct ksm_partition_unlink)
 * @flags:	0
 * @name:	address of a string
 */
struct ksm_partition_unlink {
	__u32 size;
	__u32 flags;
	__u64 name;
};

/**
 * struct ksm_partition_range - argument of MERGE, UNMERGE, ATTACH, DETACH
 * @size:		sizeof(struct ksm_partition_range)
 * @pid:		process or thread, in the caller's pid namespace; may be the caller
 * @address:		first address, a multiple of 4096
 * @length:		bytes, a multiple of 4096
 * @flags:		0
 * @counts_size:	sizeof(struct ksm_partition_counts) of the caller; what it lacks is not told
 * @counts:		address of a struct ksm_partition_counts, or 0
 */
struct ksm_partition_range {
	__u32 size;
	__u32 pid;
	__u64 address;
	__u64 length;
	__u32 flags;
	__u32 counts_size;
	__u64 counts;
};

/**
 * struct ksm_partition_counts - what a call did
 * @walked_to:		[address, walked_to) has been looked at
 * @n_requested:	pages of [address, walked_to)
 * @n_absent:		nothing is mapped there
 * @n_already:		pages that were as the call would leave them
 * @n_merged:		pages that share a frame of the partition since this call
 * @n_candidates:	pages that wait for an equal one
 * @n_volatile:		pages a scanner has seen for the first time, or changed: no candidates yet
 * @n_partners:		earlier candidates that were merged with pages of the range
 * @n_unmerged:		pages that have a frame of their own again
 * @n_killed:		processes killed, because a page could not be put back
 * @total_ns:		time of the call
 * @refused:		pages by KSM_PARTITION_REFUSED_*
 * @cost_n:		how often, by KSM_PARTITION_COST_*
 * @cost_ns:		time taken, by KSM_PARTITION_COST_*
 */
struct ksm_partition_counts {
	__u64 walked_to;
	__u64 n_requested;
	__u64 n_absent;
	__u64 n_already;
	__u64 n_merged;
	__u64 n_candidates;
	__u64 n_volatile;
	__u64 n_partners;
	__u64 n_unmerged;
	__u64 n_killed;
	__u64 total_ns;
	__u64 refused[KSM_PARTITION_REFUSED_MAX];
	__u64 cost_n[KSM_PARTITION_COST_MAX];
	__u64 cost_ns[KSM_PARTITION_COST_MAX];
};

/**
 * struct ksm_partition_counters - argument of COUNTERS: a partition since it was created
 * @size:		sizeof(struct ksm_partition_counters) of the caller; then, the bytes written
 * @flags:		KSM_PARTITION_IS_*
 * @owner:		uid of its creator, in the caller's user namespace
 * @group:		gid, the same
 * @mode:		permission bits
 * @pages_to_scan:	pages the scanner looks at between two sleeps; 0 without scanner
 * @sleep_millisecs:	how long it sleeps
 * @n_ranges:		ranges attached
 * @pages_shared:	frames that are mapped at least once
 * @pages_sharing:	mappings of these beyond the first: the frames saved
 * @pages_unshared:	candidates
 * @pages_volatile:	pages the scanner has seen once, or changing
 * @pages_scanned:	pages looked at in all
 * @full_scans:		rounds of the scanner over all ranges
 * @calls:		MERGE and UNMERGE calls that got as far as to a process
 * @n_merged:		pages merged in all, partners with them
 * @n_unmerged:		pages unmerged by calls
 * @n_killed:		processes killed
 * @refused:		pages by KSM_PARTITION_REFUSED_*
 * @cost_n:		how often, by KSM_PARTITION_COST_*
 * @cost_ns:		time taken, by KSM_PARTITION_COST_*
 */
struct ksm_partition_counters {
	__u32 size;
	__u32 flags;
	__u32 owner;
	__u32 group;
	__u32 mode;
	__u32 pages_to_scan;
	__u32 sleep_millisecs;
	__u32 n_ranges;
	__u64 pages_shared;
	__u64 pages_sharing;
	__u64 pages_unshared;
	__u64 pages_volatile;
	__u64 pages_scanned;
	__u64 full_scans;
	__u64 calls;
	__u64 n_merged;
	__u64 n_unmerged;
	__u64 n_killed;
	__u64 refused[KSM_PARTITION_REFUSED_MAX];
	__u64 cost_n[KSM_PARTITION_COST_MAX];
	__u64 cost_ns[KSM_PARTITION_COST_MAX];
};

#define KSM_PARTITION_OPEN_SIZE		24
#define KSM_PARTITION_UNLINK_SIZE	16
#define KSM_PARTITION_RANGE_SIZE	40
#define KSM_PARTITION_COUNTS_SIZE	376
#define KSM_PARTITION_COUNTERS_SIZE	400

#ifdef __cplusplus
#define KSM_PARTITION_ASSERT static_assert
#else
#define KSM_PARTITION_ASSERT _Static_assert
#endif
#define KSM_PARTITION_OFFSET(type, field, at) \
	KSM_PARTITION_ASSERT(__builtin_offsetof(struct type, field) == (at), #type "." #field)

KSM_PARTITION_ASSERT(sizeof(struct ksm_partition_open) == KSM_PARTITION_OPEN_SIZE, "open");
KSM_PARTITION_ASSERT(sizeof(struct ksm_partition_unlink) == KSM_PARTITION_UNLINK_SIZE, "unlink");
KSM_PARTITION_ASSERT(sizeof(struct ksm_partition_range) == KSM_PARTITION_RANGE_SIZE, "range");
KSM_PARTITION_ASSERT(sizeof(struct ksm_partition_counts) == KSM_PARTITION_COUNTS_SIZE, "counts");
KSM_PARTITION_ASSERT(sizeof(struct ksm_partition_counters) == KSM_PARTITION_COUNTERS_SIZE,
		     "counters");
KSM_PARTITION_OFFSET(ksm_partition_open, name, 16);
KSM_PARTITION_OFFSET(ksm_partition_range, counts, 32);
KSM_PARTITION_OFFSET(ksm_partition_counts, refused, 88);
KSM_PARTITION_OFFSET(ksm_partition_counts, cost_n, 248);
KSM_PARTITION_OFFSET(ksm_partition_counters, pages_shared, 32);
KSM_PARTITION_OFFSET(ksm_partition_counters, refused, 112);

#endif /* _UAPI_PLANNER_KSM_PARTITION_H */
