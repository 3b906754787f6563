/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of Selective KSM share. Built with CONFIG_SELECTIVE_KSM=y only.
 *
 *	partition.c		objects: names, permissions, references, and the reaper
 *	partition_device.c	/dev/ksm_partition; checks every argument, then calls down
 *	partition_sysfs.c	/sys/kernel/mm/ksm/partition/
 *	partition_scan.c	background scanners and their ranges
 *	partition_table.c	what a partition knows: merged frames, and places of candidates
 *	merge.c			a range, part by part: collect, match, merge; and unmerge
 *	replace.c		one page-table entry: what it maps, and mapping another frame
 *
 * Locks, from the outside in:
 *
 *	planner_registry	names, references, the list of partitions; directories of sysfs
 *	partition->lock		all a partition knows; one part of a range is merged at a time
 *	mm->mmap_lock		never two at once
 *	page-table lock
 *
 * A merged page is a frame that the module allocates: not on the LRU, so that it is neither swapped
 * nor moved, and it belongs to no file, so that a write to it is the kernel's own copy on write. The
 * table has one reference to it, each mapping another; the module needs not be told when a mapping
 * goes. A frame with no reference but the table's is reaped. Only partition->lock's holder
 * maps a frame where it was not mapped, so none is reaped while it gets a mapping.
 */
#ifndef KSM_PLANNER_PARTITION_H
#define KSM_PLANNER_PARTITION_H

#include <linux/kobject.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rbtree.h>
#include <linux/uidgid.h>
#include <linux/wait.h>

#include <planner/ksm_partition.h>

#include "compat.h"

/* Pages that are looked at before locks are dropped: a page table's worth. */
#define PLANNER_PART_PAGES	512

/**
 * struct planner_frame - a merged page
 * @by_hash:	in partition->frames; unused in an orphan
 * @by_page:	in partition->frames_by_page
 * @list:	in the list of orphans, where the partition is gone
 * @page:	the frame, with a reference
 * @hash:	of its content, which never changes
 * @step:	the partition's when a page was matched with it last
 */
struct planner_frame {
	union {
		struct rb_node by_hash;
		struct list_head list;
	};
	struct rb_node by_page;
	struct page *page;
	u64 hash;
	u64 step;
};

/**
 * struct planner_site - a page that was looked at and is not merged
 * @by_hash:	in partition->candidates, if @is_candidate
 * @by_place:	in partition->sites
 * @list:	in a batch's list of partners, when in neither tree
 * @mm:		address space, held by mm_count
 * @address:	where
 * @hash:	content when last looked at
 * @frame:	what a partner is to be merged with
 * @is_candidate: it may be merged with an equal page; else it has been seen changing, or once
 */
struct planner_site {
	struct rb_node by_hash;
	union {
		struct rb_node by_place;
		struct list_head list;
	};
	struct mm_struct *mm;
	unsigned long address;
	u64 hash;
	struct planner_frame *frame;
	bool is_candidate;
};

/**
 * struct planner_range - memory attached to a scanner
 * @list:	in partition->ranges
 * @mm:		address space, held by mm_count
 * @start:	first address
 * @end:	end of [start, end)
 */
struct planner_range {
	struct list_head list;
	struct mm_struct *mm;
	unsigned long start;
	unsigned long end;
};

/**
 * struct planner_partition - a partition
 * @kobj:		its directory; the structure is freed with it
 * @list:		in the list of partitions; registry
 * @name:		set once
 * @uid:		owner, set once
 * @gid:		group, set once
 * @mode:		permission bits, set once
 * @is_sync:		no scanner, set once
 * @is_linked:		it has its name; registry, read anywhere
 * @n_open:		descriptors; registry
 * @lock:		of all that follows
 * @frames:		merged pages by hash
 * @frames_by_page:	the same by struct page
 * @candidates:		sites that may be merged, by hash
 * @sites:		all sites by mm and address
 * @step:		number of the step that is being done
 * @n_candidates:	sites in @candidates
 * @n_sites:		sites in @sites
 * @sum:		what COUNTERS tells, but for the numbers that are counted when asked for
 * @ranges:		attached ranges
 * @cursor:		where the scanner goes on
 * @cursor_address:	there
 * @scanner:		its thread, NULL in a synchronous or unlinked partition
 * @wake:		what it waits on; @is_kicked is set before waking it
 * @is_kicked:		there may be something to do
 */
struct planner_partition {
	struct kobject kobj;
	struct list_head list;
	char name[KSM_PARTITION_NAME_MAX + 1];
	kuid_t uid;
	kgid_t gid;
	umode_t mode;
	bool is_sync;
	bool is_linked;
	unsigned int n_open;
	struct mutex lock;
	struct rb_root frames;
	struct rb_root frames_by_page;
	struct rb_root candidates;
	struct rb_root sites;
	u64 step;
	u64 n_candidates;
	u64 n_sites;
	struct ksm_partition_counters sum;
	struct list_head ranges;
	struct planner_range *cursor;
	unsigned long cursor_address;
	struct task_struct *scanner;
	wait_queue_head_t wake;
	bool is_kicked;
};

/**
 * struct planner_item - a page of a part, from collecting to merging
 * @address:	where
 * @page:	the page, with a reference until it has been matched
 * @frame:	what it is to be merged with, or NULL
 */
struct planner_item {
	unsigned long address;
	struct page *page;
	struct planner_frame *frame;
};

/**
 * struct planner_batch - one call, or one turn of a scanner
 * @partition:	whose; its lock is held during each step
 * @mm:		whose pages, held by mm_count
 * @pos:	next address
 * @end:	end of the range
 * @is_gated:	a page must be found unchanged once before it is a candidate
 * @max_looks:	pages, holes and mappings to look at in a step
 * @n_looks:	those looked at in the last step
 * @counts:	what is told to the caller
 * @spare:	a page for content that cannot be left where it is
 * @partners:	sites to be merged with frames that items were merged with
 * @n_items:	used of @items
 * @items:	pages of this step
 */
struct planner_batch {
	struct planner_partition *partition;
	struct mm_struct *mm;
	unsigned long pos;
	unsigned long end;
	bool is_gated;
	unsigned int max_looks;
	unsigned int n_looks;
	struct ksm_partition_counts counts;
	struct page *spare;
	struct list_head partners;
	unsigned int n_items;
	struct planner_item items[PLANNER_PART_PAGES];
};

/**
 * struct planner_place - a page-table entry, locked
 * @ptep:	the entry, when planner_place_lock() returned PLANNER_PLACE_LOCKED
 * @ptl:	its lock, held
 * @next:	end of the hole or the huge page otherwise
 */
struct planner_place {
	pte_t *ptep;
	spinlock_t *ptl;
	unsigned long next;
};

/**
 * enum planner_place_kind - what planner_place_lock() found
 * @PLANNER_PLACE_LOCKED:	an entry; it must be unlocked
 * @PLANNER_PLACE_HOLE:		no page table
 * @PLANNER_PLACE_HUGE:		a huge page, or what stands in its place
 */
enum planner_place_kind {
	PLANNER_PLACE_LOCKED,
	PLANNER_PLACE_HOLE,
	PLANNER_PLACE_HUGE,
};

/*
 * What a page or mapping is, beside KSM_PARTITION_REFUSED_*: nothing against it; no page; a page
 * of a partition.
 */
#define PLANNER_ELIGIBLE	-1
#define PLANNER_ABSENT		-2
#define PLANNER_MERGED		-3

/**
 * planner_clock() - count one more of something and the time it took
 * @counts:	where
 * @what:	KSM_PARTITION_COST_*
 * @start:	ktime_get_ns() when it began
 * @n:		how many
 */
static inline void planner_clock(struct ksm_partition_counts *counts, unsigned int what, u64 start,
				 u64 n)
{
	counts->cost_n[what] += n;
	counts->cost_ns[what] += ktime_get_ns() - start;
}

/* partition.c */
extern bool planner_allow_merge;
int planner_partition_open(const char *name, u32 flags, u32 mode, struct planner_partition **found);
int planner_partition_unlink(const char *name);
void planner_partition_close(struct planner_partition *partition);
bool planner_partition_may(const struct planner_partition *partition, unsigned int access);

/* partition_device.c */
struct mm_struct *planner_range_mm(u32 pid, u64 address, u64 length, bool is_merge);
int planner_partition_device_init(void);
void planner_partition_device_exit(void);

/* partition_sysfs.c */
int planner_sysfs_init(void);
void planner_sysfs_exit(void);
void planner_sysfs_prepare(struct planner_partition *partition);
int planner_sysfs_add(struct planner_partition *partition);

/* partition_scan.c */
int planner_scan_start(struct planner_partition *partition);
void planner_scan_stop(struct planner_partition *partition);
int planner_attach(struct planner_partition *partition, struct mm_struct *mm, unsigned long start,
		   unsigned long end, struct ksm_partition_counts *counts);
int planner_detach(struct planner_partition *partition, struct mm_struct *mm, unsigned long start,
		   unsigned long end, struct ksm_partition_counts *counts);

/* partition_table.c */
int planner_table_init(void);
void planner_table_exit(void);
bool planner_page_is_merged(struct page *page);
struct planner_frame *planner_frame_of(struct planner_partition *partition, struct page *page);
struct planner_frame *planner_frame_find(struct planner_partition *partition, u64 hash,
					 struct page *page, struct ksm_partition_counts *counts);
struct planner_frame *planner_frame_new(struct planner_partition *partition, u64 hash,
					struct page *page);
void planner_frame_discard(struct planner_partition *partition, struct planner_frame *frame);
struct planner_site *planner_site_find(struct planner_partition *partition, struct mm_struct *mm,
				       unsigned long address);
struct planner_site *planner_site_new(struct planner_partition *partition, struct mm_struct *mm,
				      unsigned long address);
struct planner_site *planner_site_equal(struct planner_partition *partition, u64 hash);
struct planner_site *planner_site_next_equal(struct planner_site *site);
void planner_site_set(struct planner_partition *partition, struct planner_site *site, u64 hash,
		      bool is_candidate);
void planner_site_take(struct planner_partition *partition, struct planner_site *site);
void planner_site_put_back(struct planner_partition *partition, struct planner_site *site);
void planner_site_free(struct planner_site *site);
void planner_site_drop(struct planner_partition *partition, struct planner_site *site);
void planner_sites_forget(struct planner_partition *partition, struct mm_struct *mm,
			  unsigned long start, unsigned long end);
void planner_table_reap(struct planner_partition *partition);
bool planner_orphans_reap(void);
void planner_table_drop(struct planner_partition *partition);

/* merge.c */
void planner_merge_init(void);
struct planner_batch *planner_batch_new(struct planner_partition *partition, struct mm_struct *mm,
					unsigned long start, unsigned long end);
void planner_batch_free(struct planner_batch *batch);
int planner_merge_step(struct planner_batch *batch);
int planner_unmerge_step(struct planner_batch *batch);
int planner_run(struct planner_batch *batch, int (*step)(struct planner_batch *batch),
		bool until_unlinked);
u64 planner_content_hash(struct page *page);
bool planner_is_equal(struct page *a, struct page *b);
void planner_add_counts(struct planner_partition *partition,
			const struct ksm_partition_counts *counts);

/* replace.c */
enum planner_place_kind planner_place_lock(struct mm_struct *mm, unsigned long address,
					   struct planner_place *place);
void planner_place_unlock(struct planner_place *place);
int planner_vma_refusal(struct vm_area_struct *vma);
int planner_pte_refusal(pte_t pte, struct page **page);
struct page *planner_page_get(struct mm_struct *mm, unsigned long address);
int planner_replace(struct planner_batch *batch, struct vm_area_struct *vma, unsigned long address,
		    struct page *merged);

#endif /* KSM_PLANNER_PARTITION_H */
