/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef _UAPI_PLANNER_PAGEHASH_H
#define _UAPI_PLANNER_PAGEHASH_H

/*
 * The page-hash dump of /dev/ksm_planner, ABI 1.0
 * ===============================================
 *
 * A dump lists the pages of one address space: for each page that is mapped, a keyed hash of its
 * content, what the kernel knows of it, and an opaque id of its frame where that is mapped more
 * than once. Nothing is faulted in, no accessed or dirty bit is touched, no huge page is split,
 * and a page in swap stays there. Neither content nor frame numbers nor the key leave the kernel.
 *
 * How to take a dump
 * ------------------
 *
 *	fd = open("/dev/ksm_planner", O_RDONLY | O_CLOEXEC);	mode 0600, owner root
 *	ioctl(fd, PAGEHASH_IOC_START, &start);
 *	read(fd, ...) until it returns 0
 *
 * read() gives a stream of bytes: any buffer size and any number of calls give the same bytes.
 * It walks on as it is read; a dump that nobody reads costs nothing. Dumps of several open files
 * are independent. PAGEHASH_IOC_START again, on the same file, at any time, drops what is left of
 * the dump and begins another. A file position does not exist (lseek and pread give ESPIPE).
 *
 * PAGEHASH_IOC_ABI takes no argument and returns PAGEHASH_ABI_MAJOR << 16 | PAGEHASH_ABI_MINOR.
 *
 * PAGEHASH_IOC_START, errors:
 *
 *	EPERM	the caller lacks CAP_SYS_PTRACE in the first user namespace, or the kernel is locked
 *		down for confidentiality
 *	EFAULT	the argument cannot be read
 *	EINVAL	size below PAGEHASH_START_SIZE, an unknown flag, a reserved field that is not 0,
 *		addresses that are not multiples of 4096 or not start < end, pid 0, above the largest
 *		int, or of a kernel thread
 *	E2BIG	size above PAGEHASH_START_SIZE and what follows is not all 0 (a newer caller asks for
 *		what this module does not know), or above 4096
 *	ESRCH	no such process, or it has no memory any more (a zombie)
 *	EINTR	a signal came before the file was free
 *
 * A failed start changes nothing: a dump under way goes on.
 *
 * read(), errors: ENODATA before the first start; EFAULT; EINTR when a signal came before
 * anything was copied (call again, nothing is lost).
 *
 * The stream
 * ----------
 *
 *	+--------+------+------+------+-- ... --+------+---------+
 *	| header | slot | slot | slot |         | slot | trailer |  end of file
 *	+--------+------+------+------+-- ... --+------+---------+
 *	header_size       record_size each           trailer_size
 *
 * All integers are little-endian. Sizes are in the header; header and trailer sizes are multiples
 * of the slot size, so that the whole stream is an array of 32-byte slots. Bytes 28 and 29 of each
 * slot after the header tell what it is (PAGEHASH_TYPE_*); those of the trailer's first slot, too.
 *
 *	struct pagehash_page:
 *	 0               8               16              24      28  30  32
 *	+---------------+---------------+---------------+-------+---+---+
 *	| address       | hash          | frame_id      | flags | 1 |nod|
 *	+---------------+---------------+---------------+-------+---+---+
 *	struct pagehash_vma:
 *	+---------------+---------------+---------------+-------+---+---+
 *	| start         | end           | 0             | flags | 2 |n  |
 *	+---------------+---------------+---------------+-------+---+---+
 *	struct pagehash_name:
 *	+---------------+---------------+---------------+-------+---+---+
 *	| text, 24 bytes, 0 after its end               | length| 3 |idx|
 *	+---------------+---------------+---------------+-------+---+---+
 *	struct pagehash_trailer, first slot:
 *	+---------------+---------------+---------------+-------+---+---+
 *	| magic         | end_ns        | n_pages       | status| 4 | 0 |
 *	+---------------+---------------+---------------+-------+---+---+
 *
 * How to read it
 * --------------
 *
 * 1. Read to the end of file. Check magic and major of the header; skip to header_size.
 * 2. The last trailer_size bytes must be the trailer (magic, type). If not, the dump was cut
 *    short: an error, not a smaller dump. n_pages + n_vmas + n_names slots lie between.
 * 3. Slots come in the order of addresses: a mapping (VMA), its name (n_names of the VMA slot says
 *    how many name slots, each with 24 bytes of it; 0 where it has no name), then its pages. A
 *    mapping without pages, or one the request leaves out, is listed all the same. Every page
 *    belongs to the last VMA slot before it and has address in [start, end). Page addresses
 *    ascend strictly; so do VMA starts. Mappings are cut to the requested range.
 * 4. A dump is not an instant. The mmap lock is dropped after each page table (2 MiB); where a
 *    mapping changed meanwhile (grew, was split, merged, remapped), a new VMA slot follows, whose
 *    start is where the walk was. So where a mapping's end is above the next one's start, cut it
 *    there. Flags, frame and place of a page are of one moment, under its page-table lock; its hash
 *    is taken just after, of that same frame: a page written meanwhile has the hash of a mixture.
 * 5. A slot type that is not known is of a newer minor: skip it.
 *
 * A name is the base name of the mapped file as bytes, not escaped and without " (deleted)", or
 * one in brackets, as /proc/PID/maps has it: [heap], [stack], [vdso], [vvar]. Names that a process
 * gives its anonymous memory (PR_SET_VMA_ANON_NAME) are left out. Heap and stack also have their
 * PAGEHASH_VMA_ bits, files PAGEHASH_VMA_FILE. PAGEHASH_VMA_GUEST_RAM is never set here: it is for
 * the reader, who knows which process is a VM.
 *
 * The hash
 * --------
 *
 * PAGEHASH_ALGORITHM_XXH64_SIPHASH24, docs/page-hash.md: SipHash-2-4(key, LE64(XXH64(page, seed)))
 * with seed = SipHash-2-4(key, "pagehash-v1-seed"). key_id is the low half of
 * SipHash-2-4(key, "pagehash-v1-kyid"), zero_hash the hash of 4096 zero bytes. A page with one of
 * the PAGEHASH_PAGE_NO_HASH bits has no hash and 0 in its place. The key is forgotten (zeroed) when
 * the trailer has been made, at the next start, and at close.
 *
 * frame_id is not 0 exactly where the frame is mapped more than once and is not the shared zero
 * page: SipHash-2-4 of the frame number under a key made of the site key and a secret that the
 * module draws when it is loaded. Ids of all dumps with one session_id (one key, one load of the
 * module) compare: equal id, same frame. The frame number cannot be had from it, not even with the
 * site key.
 *
 * mm_id is made alike of the address space: two pids with one mm_id share it (threads, vfork).
 *
 * Versions
 * --------
 *
 * Another major: refuse. A newer minor: read, skip by the sizes in the header what is appended.
 * Structures only grow at their ends; bits, types and ioctl numbers are never used again.
 */

#include <linux/types.h>

#define PAGEHASH_ABI_MAJOR	1
#define PAGEHASH_ABI_MINOR	0

/* The bytes "PAGEHASH" and "PHASHEND" as little-endian numbers. */
#define PAGEHASH_MAGIC		0x4853414845474150ULL
#define PAGEHASH_TRAILER_MAGIC	0x444e454853414850ULL

#define PAGEHASH_PAGE_BYTES	4096
#define PAGEHASH_HASH_BITS	64

#define PAGEHASH_ALGORITHM_XXH64_SIPHASH24	1

/* _IO(0xb9, 0) and _IO(0xb9, 1); the size of the argument is inside it. */
#define PAGEHASH_IOC_ABI	0xb900
#define PAGEHASH_IOC_START	0xb901

/* flags of struct pagehash_start */
#define PAGEHASH_START_NO_HASH		(1U << 0)	/* list only: pages are NOT_HASHED */
#define PAGEHASH_START_ANON		(1U << 1)	/* leave out pages of files and shmem */
#define PAGEHASH_START_COMPATIBLE	(1U << 2)	/* pages of mappings KSM may merge in only */
#define PAGEHASH_START_ADVISED		(1U << 3)	/* pages of mappings with VM_MERGEABLE only */
#define PAGEHASH_START_ALL		0xfU

/* end of struct pagehash_start for "to the top" */
#define PAGEHASH_END_OF_MEMORY		0xfffffffffffff000ULL

/* What a slot is. */
#define PAGEHASH_TYPE_PAGE	1
#define PAGEHASH_TYPE_VMA	2
#define PAGEHASH_TYPE_NAME	3
#define PAGEHASH_TYPE_TRAILER	4

/*
 * flags of struct pagehash_page: PageFlag of the trace schema (docs/trace-format.md). HUGETLB and
 * GONE are never set here.
 */
#define PAGEHASH_PAGE_ANON		(1U << 0)
#define PAGEHASH_PAGE_FILE		(1U << 1)
#define PAGEHASH_PAGE_SHMEM		(1U << 2)
#define PAGEHASH_PAGE_ZERO		(1U << 3)	/* content is all zero */
#define PAGEHASH_PAGE_ZERO_PAGE		(1U << 4)	/* maps the shared (huge) zero page */
#define PAGEHASH_PAGE_THP		(1U << 5)	/* part of a transparent huge page */
#define PAGEHASH_PAGE_KSM		(1U << 6)	/* merged by KSM; ANON is set, too */
#define PAGEHASH_PAGE_SWAPPED		(1U << 7)	/* no hash */
#define PAGEHASH_PAGE_UNREADABLE	(1U << 8)	/* no hash: memory failure */
#define PAGEHASH_PAGE_MIGRATION		(1U << 9)	/* no hash: was changing frames */
#define PAGEHASH_PAGE_SWAPCACHE		(1U << 10)
#define PAGEHASH_PAGE_LOCKED		(1U << 11)	/* mlocked or unevictable */
#define PAGEHASH_PAGE_COMPOUND		(1U << 12)
#define PAGEHASH_PAGE_HUGETLB		(1U << 13)
#define PAGEHASH_PAGE_EXCLUSIVE		(1U << 14)	/* mapped exactly once */
#define PAGEHASH_PAGE_NOT_HASHED	(1U << 15)	/* no hash: PAGEHASH_START_NO_HASH */
#define PAGEHASH_PAGE_YOUNG		(1U << 16)	/* accessed bit of the page table */
#define PAGEHASH_PAGE_DIRTY		(1U << 17)	/* of the page table or of the page */
#define PAGEHASH_PAGE_WRITABLE		(1U << 18)	/* without a fault */
#define PAGEHASH_PAGE_GONE		(1U << 31)
#define PAGEHASH_PAGE_ALL		0x8007ffffU
#define PAGEHASH_PAGE_NO_HASH		0x00008380U

/* flags of struct pagehash_vma: RegionFlag of the trace schema. */
#define PAGEHASH_VMA_ADVISED		(1U << 0)	/* VM_MERGEABLE */
#define PAGEHASH_VMA_SHARED		(1U << 1)
#define PAGEHASH_VMA_MAYSHARE		(1U << 2)
#define PAGEHASH_VMA_PFNMAP		(1U << 3)
#define PAGEHASH_VMA_IO			(1U << 4)
#define PAGEHASH_VMA_DONTEXPAND		(1U << 5)
#define PAGEHASH_VMA_HUGETLB		(1U << 6)
#define PAGEHASH_VMA_MIXEDMAP		(1U << 7)
#define PAGEHASH_VMA_DROPPABLE		(1U << 8)
#define PAGEHASH_VMA_DAX		(1U << 9)
#define PAGEHASH_VMA_LOCKED		(1U << 10)
#define PAGEHASH_VMA_HUGEPAGE		(1U << 11)
#define PAGEHASH_VMA_NOHUGEPAGE		(1U << 12)
#define PAGEHASH_VMA_USERFAULTFD	(1U << 13)
#define PAGEHASH_VMA_WIPEONFORK		(1U << 14)
#define PAGEHASH_VMA_FILE		(1U << 15)
#define PAGEHASH_VMA_STACK		(1U << 16)
#define PAGEHASH_VMA_HEAP		(1U << 17)
#define PAGEHASH_VMA_GUEST_RAM		(1U << 18)
#define PAGEHASH_VMA_READ		(1U << 19)
#define PAGEHASH_VMA_WRITE		(1U << 20)
#define PAGEHASH_VMA_EXEC		(1U << 21)
#define PAGEHASH_VMA_ALL		0x003fffffU
/* KSM never merges in a mapping with one of these. */
#define PAGEHASH_VMA_INCOMPATIBLE	0x000003feU

/* node of struct pagehash_page where there is no frame */
#define PAGEHASH_NODE_UNKNOWN		0xffff

/* status of the trailer */
#define PAGEHASH_STATUS_COMPLETE	0	/* the whole range was walked */
#define PAGEHASH_STATUS_EXITED		1	/* the address space went away (exit, exec) */

/*
 * Index into skipped[] of the trailer: pages that were left out. The first four count the pages of
 * the mapping's extent, present or not, since those are not looked at; the others count entries
 * of page tables.
 */
#define PAGEHASH_SKIP_HUGETLB	0	/* mapping of huge pages by hugetlbfs */
#define PAGEHASH_SKIP_PFNMAP	1	/* mapping of device memory or bare frames (PFNMAP, IO) */
#define PAGEHASH_SKIP_SECRET	2	/* memfd_secret: the kernel itself cannot read it */
#define PAGEHASH_SKIP_REQUEST	3	/* mapping left out by COMPATIBLE or ADVISED */
#define PAGEHASH_SKIP_FILE	4	/* page of a file or of shmem, left out by ANON */
#define PAGEHASH_SKIP_MARKER	5	/* no page: guard, userfaultfd and poison markers */
#define PAGEHASH_SKIP_SPECIAL	6	/* frame without struct page, other than the zero page */
#define PAGEHASH_SKIP_DEVICE	7	/* device memory: DAX, GPU, device-private */
#define PAGEHASH_SKIP_BUSY	8	/* page table that changed each time it was looked at */
#define PAGEHASH_SKIP_N		9
#define PAGEHASH_SKIP_MAX	12

/**
 * struct pagehash_start - argument of PAGEHASH_IOC_START
 * @size:	sizeof(struct pagehash_start) of the caller
 * @flags:	PAGEHASH_START_*
 * @pid:	process or thread, in the caller's pid namespace; may be the caller
 * @reserved0:	0
 * @start:	first address, a multiple of 4096
 * @end:	end of the range [start, end), a multiple of 4096; what is above the top is cut
 * @key:	site key; zero it when the call is back
 * @reserved:	0
 */
struct pagehash_start {
	__u32 size;
	__u32 flags;
	__u32 pid;
	__u32 reserved0;
	__u64 start;
	__u64 end;
	__u8 key[16];
	__u64 reserved[2];
};

#define PAGEHASH_START_SIZE	64

/**
 * struct pagehash_header - begins a dump
 * @magic:		PAGEHASH_MAGIC
 * @abi_major:		PAGEHASH_ABI_MAJOR
 * @abi_minor:		PAGEHASH_ABI_MINOR
 * @header_size:	bytes of this header
 * @record_size:	bytes of a slot
 * @trailer_size:	bytes of the trailer
 * @page_bytes:		4096
 * @algorithm:		PAGEHASH_ALGORITHM_*
 * @hash_bits:		64
 * @key_id:		tells keys apart, see above
 * @zero_hash:		hash of a page of zeros
 * @session_id:		frame ids compare where this is equal
 * @mm_id:		tells address spaces of one session apart
 * @start:		the range walked, cut to what a process can have
 * @end:		end of that range
 * @start_ns:		Unix time of PAGEHASH_IOC_START, ns
 * @pid:		as in the request
 * @flags:		as in the request
 * @reserved:		0
 */
struct pagehash_header {
	__u64 magic;
	__u16 abi_major;
	__u16 abi_minor;
	__u32 header_size;
	__u32 record_size;
	__u32 trailer_size;
	__u32 page_bytes;
	__u32 algorithm;
	__u32 hash_bits;
	__u32 key_id;
	__u64 zero_hash;
	__u64 session_id;
	__u64 mm_id;
	__u64 start;
	__u64 end;
	__u64 start_ns;
	__u32 pid;
	__u32 flags;
	__u64 reserved[4];
};

/**
 * struct pagehash_page - one page
 * @address:	virtual address, a multiple of 4096
 * @hash:	keyed hash of the content; 0 with PAGEHASH_PAGE_NO_HASH bits
 * @frame_id:	equal for one frame, 0 where it is mapped once or there is none
 * @flags:	PAGEHASH_PAGE_*
 * @type:	PAGEHASH_TYPE_PAGE
 * @node:	NUMA node of the frame, PAGEHASH_NODE_UNKNOWN without frame
 */
struct pagehash_page {
	__u64 address;
	__u64 hash;
	__u64 frame_id;
	__u32 flags;
	__u16 type;
	__u16 node;
};

/**
 * struct pagehash_vma - one mapping, or the rest of one that changed
 * @start:	first address
 * @end:	end of [start, end)
 * @reserved:	0
 * @flags:	PAGEHASH_VMA_*
 * @type:	PAGEHASH_TYPE_VMA
 * @n_names:	name slots that follow
 */
struct pagehash_vma {
	__u64 start;
	__u64 end;
	__u64 reserved;
	__u32 flags;
	__u16 type;
	__u16 n_names;
};

/**
 * struct pagehash_name - 24 bytes of the name of the mapping before it
 * @text:	bytes [24 * index, ...) of the name; 0 after its end
 * @length:	bytes of the whole name
 * @type:	PAGEHASH_TYPE_NAME
 * @index:	0, 1, ... within the name
 */
struct pagehash_name {
	__u8 text[24];
	__u32 length;
	__u16 type;
	__u16 index;
};

/**
 * struct pagehash_trailer - ends a dump
 * @magic:		PAGEHASH_TRAILER_MAGIC
 * @end_ns:		Unix time when the walk was over, ns
 * @n_pages:		page slots in the dump
 * @status:		PAGEHASH_STATUS_*
 * @type:		PAGEHASH_TYPE_TRAILER
 * @reserved0:		0
 * @start_ns:		as in the header
 * @walked_to:		the walk covered [start, walked_to); another dump may start there
 * @n_hashed:		page slots with a hash
 * @n_vmas:		VMA slots in the dump
 * @n_names:		name slots in the dump
 * @lock_max_ns:	longest time the mmap lock was held at once
 * @lock_total_ns:	time it was held in all
 * @n_locks:		how often it was taken
 * @skipped:		pages left out, by PAGEHASH_SKIP_*; 0 from PAGEHASH_SKIP_N on
 */
struct pagehash_trailer {
	__u64 magic;
	__u64 end_ns;
	__u64 n_pages;
	__u32 status;
	__u16 type;
	__u16 reserved0;
	__u64 start_ns;
	__u64 walked_to;
	__u64 n_hashed;
	__u64 n_vmas;
	__u64 n_names;
	__u64 lock_max_ns;
	__u64 lock_total_ns;
	__u64 n_locks;
	__u64 skipped[PAGEHASH_SKIP_MAX];
};

#define PAGEHASH_HEADER_SIZE	128
#define PAGEHASH_RECORD_SIZE	32
#define PAGEHASH_TRAILER_SIZE	192

#ifdef __cplusplus
#define PAGEHASH_ASSERT static_assert
#else
#define PAGEHASH_ASSERT _Static_assert
#endif
#define PAGEHASH_OFFSET(type, field, at) \
	PAGEHASH_ASSERT(__builtin_offsetof(struct type, field) == (at), #type "." #field)

PAGEHASH_ASSERT(sizeof(struct pagehash_start) == PAGEHASH_START_SIZE, "pagehash_start");
PAGEHASH_ASSERT(sizeof(struct pagehash_header) == PAGEHASH_HEADER_SIZE, "pagehash_header");
PAGEHASH_ASSERT(sizeof(struct pagehash_page) == PAGEHASH_RECORD_SIZE, "pagehash_page");
PAGEHASH_ASSERT(sizeof(struct pagehash_vma) == PAGEHASH_RECORD_SIZE, "pagehash_vma");
PAGEHASH_ASSERT(sizeof(struct pagehash_name) == PAGEHASH_RECORD_SIZE, "pagehash_name");
PAGEHASH_ASSERT(sizeof(struct pagehash_trailer) == PAGEHASH_TRAILER_SIZE, "pagehash_trailer");
PAGEHASH_ASSERT(PAGEHASH_HEADER_SIZE % PAGEHASH_RECORD_SIZE == 0, "header is whole slots");
PAGEHASH_ASSERT(PAGEHASH_TRAILER_SIZE % PAGEHASH_RECORD_SIZE == 0, "trailer is whole slots");
PAGEHASH_OFFSET(pagehash_start, start, 16);
PAGEHASH_OFFSET(pagehash_start, key, 32);
PAGEHASH_OFFSET(pagehash_start, reserved, 48);
PAGEHASH_OFFSET(pagehash_header, header_size, 12);
PAGEHASH_OFFSET(pagehash_header, key_id, 36);
PAGEHASH_OFFSET(pagehash_header, zero_hash, 40);
PAGEHASH_OFFSET(pagehash_header, start_ns, 80);
PAGEHASH_OFFSET(pagehash_header, reserved, 96);
PAGEHASH_OFFSET(pagehash_page, frame_id, 16);
PAGEHASH_OFFSET(pagehash_page, flags, 24);
PAGEHASH_OFFSET(pagehash_page, type, 28);
PAGEHASH_OFFSET(pagehash_vma, flags, 24);
PAGEHASH_OFFSET(pagehash_vma, type, 28);
PAGEHASH_OFFSET(pagehash_name, length, 24);
PAGEHASH_OFFSET(pagehash_name, type, 28);
PAGEHASH_OFFSET(pagehash_trailer, status, 24);
PAGEHASH_OFFSET(pagehash_trailer, type, 28);
PAGEHASH_OFFSET(pagehash_trailer, walked_to, 40);
PAGEHASH_OFFSET(pagehash_trailer, skipped, 96);
PAGEHASH_ASSERT(PAGEHASH_PAGE_NO_HASH ==
		(PAGEHASH_PAGE_SWAPPED | PAGEHASH_PAGE_UNREADABLE |
		 PAGEHASH_PAGE_MIGRATION | PAGEHASH_PAGE_NOT_HASHED), "no-hash bits");

#endif /* _UAPI_PLANNER_PAGEHASH_H */
