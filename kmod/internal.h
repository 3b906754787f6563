/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of ksm_planner share.
 *
 *	main.c		load and unload
 *	chardev.c	file operations; checks every argument, then calls down
 *	walk.c		address space -> mappings -> page tables -> entries
 *	hash.c		entries -> page slots: content, hash, frame id
 *
 * A dump moves one step at a time, and only in read(): a step walks at most one page table with
 * entries in it, under the mmap lock, taking a reference to each page it lists; then, with no lock
 * but the dump's own, it hashes them and drops the references. So an open dump that nobody reads
 * holds no lock and no page, and of its target only the mm_struct (mm_count), not its memory.
 */
#ifndef KSM_PLANNER_INTERNAL_H
#define KSM_PLANNER_INTERNAL_H

#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/siphash.h>

#include <planner/pagehash.h>

#include "compat.h"

/* Slots of the output buffer: a page table and, before it, some mappings with their names. */
#define PLANNER_OUT_SLOTS	1024
/* Slots of the longest name: 255 bytes, 24 a slot; and of the mapping itself. */
#define PLANNER_VMA_SLOTS	12

/**
 * union planner_slot - one slot of the stream
 * @page:	as a page
 * @vma:	as a mapping
 * @name:	as a part of a mapping's name
 */
union planner_slot {
	struct pagehash_page page;
	struct pagehash_vma vma;
	struct pagehash_name name;
};

/**
 * struct planner_keys - what the hash needs of the site key; zeroed when a dump is over
 * @site:	the site key
 * @frame:	key of frame ids: of the site key and the module's secret
 * @seed:	seed of XXH64
 * @zero_hash:	hash of a page of zeros
 */
struct planner_keys {
	siphash_key_t site;
	siphash_key_t frame;
	u64 seed;
	u64 zero_hash;
};

/**
 * struct planner_entry - one page-table entry, as collected under the page-table lock
 * @address:	virtual address
 * @page:	the page, with a reference unless @flags says ZERO_PAGE; NULL where there is none
 * @flags:	PAGEHASH_PAGE_* bits so far
 * @is_shared:	the frame is mapped more than once
 */
struct planner_entry {
	u64 address;
	struct page *page;
	u32 flags;
	bool is_shared;
};

/**
 * enum planner_phase - where a dump is
 * @PLANNER_IDLE:	not started
 * @PLANNER_WALKING:	there is more to walk
 * @PLANNER_OVER:	the trailer has been made; what is in the buffer is all there is
 */
enum planner_phase {
	PLANNER_IDLE,
	PLANNER_WALKING,
	PLANNER_OVER,
};

/**
 * struct planner_seen - the mapping that was listed last
 * @end:	its end
 * @flags:	its vm_flags
 * @pgoff:	page offset of address 0 in its file or object (may be negative)
 * @file:	its file; compared, never followed
 */
struct planner_seen {
	unsigned long end;
	unsigned long flags;
	unsigned long pgoff;
	const void *file;
};

/**
 * struct planner_dump - state of one open file; all of it under @lock
 * @lock:	held over each ioctl and read; taken before any mmap lock
 * @phase:	see enum planner_phase
 * @flags:	PAGEHASH_START_* of the request
 * @mm:		target, pinned by mm_count while WALKING, else NULL
 * @keys:	zero unless WALKING
 * @pos:	next address to look at
 * @end:	end of the range
 * @seen:	mapping listed last, all zero before the first
 * @sum:	the trailer being counted
 * @out:	PLANNER_OUT_SLOTS slots: header, slots and trailer on their way out
 * @out_bytes:	bytes in @out
 * @out_pos:	bytes of @out that have been read
 * @entries:	PTRS_PER_PTE entries of one page table
 * @n_entries:	how many there are
 * @copy:	one page: what is hashed is a copy, so that hash and ZERO are of one content
 */
struct planner_dump {
	struct mutex lock;
	enum planner_phase phase;
	u32 flags;
	struct mm_struct *mm;
	struct planner_keys keys;
	unsigned long pos;
	unsigned long end;
	struct planner_seen seen;
	struct pagehash_trailer sum;
	union planner_slot *out;
	size_t out_bytes;
	size_t out_pos;
	struct planner_entry *entries;
	unsigned int n_entries;
	void *copy;
};

/**
 * planner_push() - the next free slot of the output buffer, zeroed
 * @dump:	the dump; its lock is held. The caller has made sure that there is room.
 */
static inline union planner_slot *planner_push(struct planner_dump *dump)
{
	union planner_slot *slot = (void *)dump->out + dump->out_bytes;

	dump->out_bytes += sizeof(*slot);
	memset(slot, 0, sizeof(*slot));
	return slot;
}

struct mm_struct *planner_mm_of(u32 number);
int planner_chardev_init(void);
void planner_chardev_exit(void);

void planner_hash_init(void);
void planner_hash_exit(void);
void planner_keys_set(struct planner_keys *keys, const u8 *key);
u32 planner_key_id(const struct planner_keys *keys);
u64 planner_session_id(const struct planner_keys *keys);
u64 planner_mm_id(const struct planner_keys *keys, const struct mm_struct *mm);
void planner_hash_entries(struct planner_dump *dump);

int planner_walk_step(struct planner_dump *dump);

#ifdef PLANNER_SELECTIVE_KSM
int planner_partition_init(void);
void planner_partition_exit(void);
#else
static inline int planner_partition_init(void)
{
	return 0;
}

static inline void planner_partition_exit(void)
{
}
#endif

#endif /* KSM_PLANNER_INTERNAL_H */
