// SPDX-License-Identifier: GPL-2.0
/*
 * What a partition knows: its merged frames, and the places of pages that wait for an equal one.
 * All of it is under partition->lock; orphans have a lock of their own.
 *
 * An orphan is a frame of a partition that is no more, and still mapped. It is kept track of so that
 * max_pages bounds what cannot be swapped, whatever becomes of partitions.
 */
#include <linux/atomic.h>
#include <linux/highmem.h>
#include <linux/moduleparam.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "partition_internal.h"

/* Mappings of one frame; the counter has room for twice as many. */
#define PLANNER_REFS_MAX	(1 << 30)

static unsigned long planner_max_pages = 262144;
module_param_named(max_pages, planner_max_pages, ulong, 0644);
MODULE_PARM_DESC(max_pages, "merged pages that may exist, over all partitions (default 262144)");

/* Its address marks a frame of the module. */
static const char planner_tag;

static struct kmem_cache *planner_frame_cache;
static struct kmem_cache *planner_site_cache;
static atomic_long_t planner_n_frames;
static LIST_HEAD(planner_orphans);
static DEFINE_MUTEX(planner_orphans_lock);

/**
 * planner_table_init() - make the caches
 *
 * They are of the module's own, so that the kernel complains at unload of what was not freed.
 *
 * Return: 0 or -ENOMEM.
 */
int planner_table_init(void)
{
	planner_frame_cache = kmem_cache_create("ksm_planner_frame", sizeof(struct planner_frame), 0,
						SLAB_ACCOUNT, NULL);
	planner_site_cache = kmem_cache_create("ksm_planner_site", sizeof(struct planner_site), 0,
					       SLAB_ACCOUNT, NULL);
	if (planner_frame_cache && planner_site_cache)
		return 0;
	kmem_cache_destroy(planner_frame_cache);
	kmem_cache_destroy(planner_site_cache);
	return -ENOMEM;
}

static void planner_frame_free(struct planner_frame *frame)
{
	/* The last reference to a frame that is mapped is its last mapping's. */
	put_page(frame->page);
	kmem_cache_free(planner_frame_cache, frame);
	atomic_long_dec(&planner_n_frames);
}

/**
 * planner_table_exit() - let go of orphans, destroy the caches
 *
 * Context: No partition exists.
 */
void planner_table_exit(void)
{
	struct planner_frame *frame, *next;

	list_for_each_entry_safe(frame, next, &planner_orphans, list)
		planner_frame_free(frame);
	kmem_cache_destroy(planner_frame_cache);
	kmem_cache_destroy(planner_site_cache);
}

/**
 * planner_page_is_merged() - is this a frame of some partition?
 * @page:	a page that cannot go away now
 */
bool planner_page_is_merged(struct page *page)
{
	return !PageCompound(page) && !PageAnon(page) && !PageLRU(page) &&
	       page_private(page) == (unsigned long)&planner_tag;
}

/* Does nothing but the table refer to it? Nobody can begin to, but this partition. */
static bool planner_frame_is_unused(const struct planner_frame *frame)
{
	return page_ref_count(frame->page) == 1;
}

/* Trees. */

static bool planner_frame_hash_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct planner_frame, by_hash)->hash <
	       rb_entry(b, struct planner_frame, by_hash)->hash;
}

static int planner_frame_hash_cmp(const void *key, const struct rb_node *node)
{
	u64 a = *(const u64 *)key, b = rb_entry(node, struct planner_frame, by_hash)->hash;

	return a < b ? -1 : a > b;
}

static bool planner_frame_page_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct planner_frame, by_page)->page <
	       rb_entry(b, struct planner_frame, by_page)->page;
}

static int planner_frame_page_cmp(const void *key, const struct rb_node *node)
{
	const struct page *b = rb_entry(node, struct planner_frame, by_page)->page;

	return (const struct page *)key < b ? -1 : (const struct page *)key > b;
}

static bool planner_site_hash_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct planner_site, by_hash)->hash <
	       rb_entry(b, struct planner_site, by_hash)->hash;
}

static int planner_site_hash_cmp(const void *key, const struct rb_node *node)
{
	u64 a = *(const u64 *)key, b = rb_entry(node, struct planner_site, by_hash)->hash;

	return a < b ? -1 : a > b;
}

static int planner_place_cmp(const void *key, const struct rb_node *node)
{
	const struct planner_site *a = key, *b = rb_entry(node, struct planner_site, by_place);

	if (a->mm != b->mm)
		return a->mm < b->mm ? -1 : 1;
	return a->address < b->address ? -1 : a->address > b->address;
}

static bool planner_place_less(struct rb_node *a, const struct rb_node *b)
{
	return planner_place_cmp(rb_entry(a, struct planner_site, by_place), b) < 0;
}

/* Frames. */

/**
 * planner_frame_of() - what a partition knows of a page, NULL where it is not one of its frames
 * @partition:	locked
 * @page:	any page
 */
struct planner_frame *planner_frame_of(struct planner_partition *partition, struct page *page)
{
	return rb_entry_safe(rb_find(page, &partition->frames_by_page, planner_frame_page_cmp),
			     struct planner_frame, by_page);
}

static void planner_frame_remove(struct planner_partition *partition, struct planner_frame *frame)
{
	rb_erase(&frame->by_hash, &partition->frames);
	rb_erase(&frame->by_page, &partition->frames_by_page);
}

/**
 * planner_frame_discard() - forget a frame that was never mapped
 * @partition:	locked
 * @frame:	the frame
 */
void planner_frame_discard(struct planner_partition *partition, struct planner_frame *frame)
{
	planner_frame_remove(partition, frame);
	planner_frame_free(frame);
}

/**
 * planner_frame_find() - the frame with the content of a page, NULL where there is none
 * @partition:	locked
 * @hash:	of the page
 * @page:	the page
 * @counts:	for the time it takes to compare
 *
 * A frame whose last mapping has gone is not one any more, unless this step is about to map it.
 */
struct planner_frame *planner_frame_find(struct planner_partition *partition, u64 hash,
					 struct page *page, struct ksm_partition_counts *counts)
{
	struct rb_node *node, *next;

	node = rb_find_first(&hash, &partition->frames, planner_frame_hash_cmp);
	for (; node; node = next) {
		struct planner_frame *frame = rb_entry(node, struct planner_frame, by_hash);
		u64 start = ktime_get_ns();
		bool is_equal;

		next = rb_next_match(&hash, node, planner_frame_hash_cmp);
		if (planner_frame_is_unused(frame) && frame->step != partition->step) {
			planner_frame_discard(partition, frame);
			continue;
		}
		is_equal = planner_is_equal(page, frame->page);
		planner_clock(counts, KSM_PARTITION_COST_COMPARE, start, 1);
		if (is_equal && page_ref_count(frame->page) < PLANNER_REFS_MAX) {
			frame->step = partition->step;
			return frame;
		}
	}
	return NULL;
}

/**
 * planner_frame_new() - make a frame with the content of a page
 * @partition:	locked
 * @hash:	of that content
 * @page:	the page; it may be written meanwhile, so look at the copy
 *
 * Return: the frame; -ENOSPC above max_pages, -ENOMEM.
 */
struct planner_frame *planner_frame_new(struct planner_partition *partition, u64 hash,
					struct page *page)
{
	struct planner_frame *frame;

	if (atomic_long_inc_return(&planner_n_frames) > READ_ONCE(planner_max_pages)) {
		atomic_long_dec(&planner_n_frames);
		return ERR_PTR(-ENOSPC);
	}
	frame = kmem_cache_zalloc(planner_frame_cache, GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY);
	if (!frame)
		goto forget;
	/* Not movable: it is not on the LRU. */
	frame->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY);
	if (!frame->page)
		goto free;
	copy_highpage(frame->page, page);
	__SetPageUptodate(frame->page);
	set_page_private(frame->page, (unsigned long)&planner_tag);
	frame->hash = hash;
	frame->step = partition->step;
	rb_add(&frame->by_hash, &partition->frames, planner_frame_hash_less);
	rb_add(&frame->by_page, &partition->frames_by_page, planner_frame_page_less);
	return frame;

free:
	kmem_cache_free(planner_frame_cache, frame);
forget:
	atomic_long_dec(&planner_n_frames);
	return ERR_PTR(-ENOMEM);
}

/* Sites. */

/**
 * planner_site_find() - what is known of a place, NULL where nothing is
 * @partition:	locked
 * @mm:		address space
 * @address:	address
 */
struct planner_site *planner_site_find(struct planner_partition *partition, struct mm_struct *mm,
				       unsigned long address)
{
	const struct planner_site key = { .mm = mm, .address = address };

	return rb_entry_safe(rb_find(&key, &partition->sites, planner_place_cmp),
			     struct planner_site, by_place);
}

/**
 * planner_site_new() - take note of a place where nothing is known
 * @partition:	locked
 * @mm:		address space
 * @address:	address
 *
 * Return: the site, no candidate yet; NULL without memory.
 */
struct planner_site *planner_site_new(struct planner_partition *partition, struct mm_struct *mm,
				      unsigned long address)
{
	struct planner_site *site = kmem_cache_zalloc(planner_site_cache, GFP_KERNEL |
						      __GFP_NOWARN | __GFP_NORETRY);

	if (!site)
		return NULL;
	mmgrab(mm);
	site->mm = mm;
	site->address = address;
	rb_add(&site->by_place, &partition->sites, planner_place_less);
	partition->n_sites++;
	return site;
}

/**
 * planner_site_equal() - the first candidate with a hash, or NULL
 * @partition:	locked
 * @hash:	the hash
 */
struct planner_site *planner_site_equal(struct planner_partition *partition, u64 hash)
{
	return rb_entry_safe(rb_find_first(&hash, &partition->candidates, planner_site_hash_cmp),
			     struct planner_site, by_hash);
}

/**
 * planner_site_next_equal() - the next candidate with the same hash, or NULL
 * @site:	a candidate; its partition is locked
 */
struct planner_site *planner_site_next_equal(struct planner_site *site)
{
	return rb_entry_safe(rb_next_match(&site->hash, &site->by_hash, planner_site_hash_cmp),
			     struct planner_site, by_hash);
}

/**
 * planner_site_set() - what has been seen at a place
 * @partition:	locked
 * @site:	in the tree of places
 * @hash:	of the content
 * @is_candidate: may be merged
 */
void planner_site_set(struct planner_partition *partition, struct planner_site *site, u64 hash,
		      bool is_candidate)
{
	if (site->is_candidate) {
		rb_erase(&site->by_hash, &partition->candidates);
		partition->n_candidates--;
	}
	site->hash = hash;
	site->is_candidate = is_candidate;
	if (is_candidate) {
		rb_add(&site->by_hash, &partition->candidates, planner_site_hash_less);
		partition->n_candidates++;
	}
}

/**
 * planner_site_take() - take a site out of the trees
 * @partition:	locked
 * @site:	in the trees
 */
void planner_site_take(struct planner_partition *partition, struct planner_site *site)
{
	planner_site_set(partition, site, site->hash, false);
	rb_erase(&site->by_place, &partition->sites);
	partition->n_sites--;
}

/**
 * planner_site_put_back() - make a site that was taken out a candidate again
 * @partition:	locked
 * @site:	in no tree and no list
 */
void planner_site_put_back(struct planner_partition *partition, struct planner_site *site)
{
	if (planner_site_find(partition, site->mm, site->address)) {
		planner_site_free(site);
		return;
	}
	site->frame = NULL;
	rb_add(&site->by_place, &partition->sites, planner_place_less);
	partition->n_sites++;
	planner_site_set(partition, site, site->hash, true);
}

/**
 * planner_site_free() - free a site that is in no tree
 * @site:	the site
 */
void planner_site_free(struct planner_site *site)
{
	mmdrop(site->mm);
	kmem_cache_free(planner_site_cache, site);
}

/**
 * planner_site_drop() - forget a site
 * @partition:	locked
 * @site:	in the trees
 */
void planner_site_drop(struct planner_partition *partition, struct planner_site *site)
{
	planner_site_take(partition, site);
	planner_site_free(site);
}

/**
 * planner_sites_forget() - forget all sites of a range
 * @partition:	locked
 * @mm:		address space
 * @start:	first address
 * @end:	end of [start, end)
 */
void planner_sites_forget(struct planner_partition *partition, struct mm_struct *mm,
			  unsigned long start, unsigned long end)
{
	const struct planner_site key = { .mm = mm, .address = start };
	struct rb_node *node = partition->sites.rb_node, *first = NULL;

	/* The first site that is not before the key. */
	while (node) {
		if (planner_place_cmp(&key, node) <= 0) {
			first = node;
			node = node->rb_left;
		} else {
			node = node->rb_right;
		}
	}
	while (first) {
		struct planner_site *site = rb_entry(first, struct planner_site, by_place);

		if (site->mm != mm || site->address >= end)
			break;
		first = rb_next(first);
		planner_site_drop(partition, site);
	}
}

/* Reaping. */

/**
 * planner_table_reap() - forget what is gone, and count what is there
 * @partition:	locked
 *
 * Frees frames without mapping and sites of address spaces that are no more. Sets the numbers of
 * partition->sum that are found by counting.
 */
void planner_table_reap(struct planner_partition *partition)
{
	struct rb_node *node, *next;

	partition->sum.pages_shared = 0;
	partition->sum.pages_sharing = 0;
	for (node = rb_first(&partition->frames); node; node = next) {
		struct planner_frame *frame = rb_entry(node, struct planner_frame, by_hash);
		int n_mappings = compat_page_mapcount(frame->page);

		next = rb_next(node);
		if (planner_frame_is_unused(frame)) {
			planner_frame_discard(partition, frame);
		} else if (n_mappings) {
			partition->sum.pages_shared++;
			partition->sum.pages_sharing += n_mappings - 1;
		}
		cond_resched();
	}
	for (node = rb_first(&partition->sites); node; node = next) {
		struct planner_site *site = rb_entry(node, struct planner_site, by_place);

		next = rb_next(node);
		if (!atomic_read(&site->mm->mm_users))
			planner_site_drop(partition, site);
		cond_resched();
	}
	partition->sum.pages_unshared = partition->n_candidates;
	partition->sum.pages_volatile = partition->n_sites - partition->n_candidates;
}

/**
 * planner_orphans_reap() - free orphans without mapping
 *
 * Return: whether there are orphans left.
 */
bool planner_orphans_reap(void)
{
	struct planner_frame *frame, *next;
	bool is_left;

	mutex_lock(&planner_orphans_lock);
	list_for_each_entry_safe(frame, next, &planner_orphans, list) {
		if (planner_frame_is_unused(frame)) {
			list_del(&frame->list);
			planner_frame_free(frame);
		}
		cond_resched();
	}
	is_left = !list_empty(&planner_orphans);
	mutex_unlock(&planner_orphans_lock);
	return is_left;
}

/**
 * planner_table_drop() - empty the table of a partition that is no more
 * @partition:	nobody else has it
 *
 * What is merged stays mapped; its frames become orphans.
 */
void planner_table_drop(struct planner_partition *partition)
{
	struct planner_frame *frame;
	struct rb_node *node;

	while ((node = rb_first(&partition->sites)))
		planner_site_drop(partition, rb_entry(node, struct planner_site, by_place));
	mutex_lock(&planner_orphans_lock);
	while ((node = rb_first(&partition->frames))) {
		frame = rb_entry(node, struct planner_frame, by_hash);
		planner_frame_remove(partition, frame);
		list_add(&frame->list, &planner_orphans);
		cond_resched();
	}
	mutex_unlock(&planner_orphans_lock);
	planner_orphans_reap();
}
