// SPDX-License-Identifier: GPL-2.0
/*
 * Merging and unmerging a range, one step at a time: at most PLANNER_PART_PAGES pages, under the
 * partition's lock.
 *
 *  collect	under the mmap lock for reading: the pages of the step, each with a reference; what
 *		cannot be merged is counted by reason
 *  match	without mmap lock: hash, find a frame or a candidate with the same content, compare;
 *		the references are dropped, since a page with one would be busy
 *  replace	under the mmap lock for writing: pages of the step, then under that of each other
 *		address space the candidates that they were matched with
 *
 * A page may change, move or go between these; planner_replace() looks at everything again.
 */
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/xxhash.h>

#include "partition_internal.h"

/* Mappings, holes and empty page tables looked at in one step. */
#define PLANNER_LOOKS	4096

/* Pages with one hash that are compared with a page: more are somebody's doing. */
#define PLANNER_EQUAL_MAX	16

/* Drawn at load: who does not know it cannot easily make pages with one hash. */
static u64 planner_content_seed __ro_after_init;

/**
 * planner_merge_init() - draw the seed of the hash
 */
void planner_merge_init(void)
{
	get_random_bytes(&planner_content_seed, sizeof(planner_content_seed));
}

/**
 * planner_batch_new() - begin a call
 * @partition:	the partition; the caller keeps it
 * @mm:		the address space; the caller keeps it
 * @start:	first address
 * @end:	end of [start, end)
 *
 * Return: the batch, or NULL without memory.
 */
struct planner_batch *planner_batch_new(struct planner_partition *partition, struct mm_struct *mm,
					unsigned long start, unsigned long end)
{
	struct planner_batch *batch = kvzalloc(sizeof(*batch), GFP_KERNEL_ACCOUNT);

	if (!batch)
		return NULL;
	batch->partition = partition;
	batch->mm = mm;
	batch->pos = start;
	batch->end = end;
	batch->max_looks = PLANNER_LOOKS;
	INIT_LIST_HEAD(&batch->partners);
	return batch;
}

/**
 * planner_batch_free() - end a call
 * @batch:	the batch, or NULL
 */
void planner_batch_free(struct planner_batch *batch)
{
	if (batch && batch->spare)
		put_page(batch->spare);
	kvfree(batch);
}

/**
 * planner_content_hash() - hash of a page
 * @page:	the page
 *
 * Equal pages have equal hashes; the opposite is never relied on.
 */
u64 planner_content_hash(struct page *page)
{
	const void *at = kmap_local_page(page);
	u64 hash = xxh64(at, PAGE_SIZE, planner_content_seed);

	kunmap_local(at);
	return hash;
}

/**
 * planner_is_equal() - do two pages have the same content?
 * @a:	a page
 * @b:	another
 */
bool planner_is_equal(struct page *a, struct page *b)
{
	const void *at_a = kmap_local_page(a), *at_b = kmap_local_page(b);
	bool is_equal = !memcmp(at_a, at_b, PAGE_SIZE);

	kunmap_local(at_b);
	kunmap_local(at_a);
	return is_equal;
}

static void planner_refuse(struct planner_batch *batch, int reason, u64 n_pages)
{
	batch->counts.refused[reason] += n_pages;
}

/* Collecting. */

/* A page of a partition that is found in an eligible mapping. Its page-table lock is held. */
static void planner_collect_merged(struct planner_batch *batch, struct page *page)
{
	if (planner_frame_of(batch->partition, page))
		batch->counts.n_already++;
	else
		planner_refuse(batch, KSM_PARTITION_REFUSED_FOREIGN, 1);
}

/* Looks at one address of an eligible mapping, or at a hole up to `end`; moves batch->pos. */
static void planner_collect_at(struct planner_batch *batch, unsigned long end)
{
	unsigned long address = batch->pos;
	struct planner_place place;
	struct page *page;
	int refusal;

	switch (planner_place_lock(batch->mm, address, &place)) {
	case PLANNER_PLACE_HOLE:
		/* The last table of all ends at 0. */
		batch->pos = min(end - 1, place.next - 1) + 1;
		batch->counts.n_absent += (batch->pos - address) >> PAGE_SHIFT;
		return;
	case PLANNER_PLACE_HUGE:
		batch->pos = min(end - 1, place.next - 1) + 1;
		planner_refuse(batch, KSM_PARTITION_REFUSED_THP, (batch->pos - address) >> PAGE_SHIFT);
		return;
	case PLANNER_PLACE_LOCKED:
		break;
	}
	batch->pos += PAGE_SIZE;
	refusal = planner_pte_refusal(READ_ONCE(*place.ptep), &page);
	if (refusal == PLANNER_ABSENT)
		batch->counts.n_absent++;
	else if (refusal == PLANNER_MERGED)
		planner_collect_merged(batch, page);
	else if (refusal != PLANNER_ELIGIBLE)
		planner_refuse(batch, refusal, 1);
	else if (!try_get_page(page))
		planner_refuse(batch, KSM_PARTITION_REFUSED_BUSY, 1);
	else
		batch->items[batch->n_items++] = (struct planner_item){
			.address = address,
			.page = page,
		};
	planner_place_unlock(&place);
}

/* Collects the next pages. The mmap lock is held for reading. */
static void planner_collect(struct planner_batch *batch)
{
	u64 start = ktime_get_ns();
	unsigned long from = batch->pos;
	unsigned int i;

	batch->n_items = 0;
	for (i = 0; i < batch->max_looks && batch->pos < batch->end; i++) {
		struct vm_area_struct *vma = find_vma(batch->mm, batch->pos);
		unsigned long end = vma ? min(batch->end, vma->vm_end) : batch->end;
		int refusal;

		if (!vma || vma->vm_start > batch->pos) {
			end = vma ? min(batch->end, vma->vm_start) : batch->end;
			batch->counts.n_absent += (end - batch->pos) >> PAGE_SHIFT;
			batch->pos = end;
			continue;
		}
		refusal = planner_vma_refusal(vma);
		if (refusal != PLANNER_ELIGIBLE) {
			planner_refuse(batch, refusal, (end - batch->pos) >> PAGE_SHIFT);
			batch->pos = end;
			continue;
		}
		for (; i < batch->max_looks && batch->pos < end; i++) {
			planner_collect_at(batch, end);
			if (batch->n_items == PLANNER_PART_PAGES)
				goto out;
		}
	}
out:
	batch->n_looks = i;
	batch->counts.n_requested += (batch->pos - from) >> PAGE_SHIFT;
	planner_clock(&batch->counts, KSM_PARTITION_COST_WALK, start, i);
}

/* Matching. */

/*
 * The candidate with the content of an item, taken out of the trees; NULL where there is none. What
 * has changed since it became a candidate is put where it belongs now; what is gone is forgotten.
 */
static struct planner_site *planner_match_candidate(struct planner_batch *batch,
						    struct planner_item *item, u64 hash)
{
	struct planner_partition *partition = batch->partition;
	struct planner_site *site, *next;
	int i = 0;

	for (site = planner_site_equal(partition, hash); site && i++ < PLANNER_EQUAL_MAX; site = next) {
		struct page *page;
		bool is_equal;
		u64 start;

		next = planner_site_next_equal(site);
		if (site->mm == batch->mm && site->address == item->address)
			continue;
		page = planner_page_get(site->mm, site->address);
		if (!page) {
			planner_site_drop(partition, site);
			continue;
		}
		start = ktime_get_ns();
		is_equal = planner_is_equal(page, item->page);
		planner_clock(&batch->counts, KSM_PARTITION_COST_COMPARE, start, 1);
		if (!is_equal) {
			u64 now = planner_content_hash(page);

			/* With the same hash it stays where it is: another content, a collision. */
			if (now != hash)
				planner_site_set(partition, site, now, !batch->is_gated);
			put_page(page);
			continue;
		}
		put_page(page);
		planner_site_take(partition, site);
		return site;
	}
	return NULL;
}

/* An item without partner waits for one, or, where that is asked for, is looked at once more. */
static void planner_match_none(struct planner_batch *batch, struct planner_item *item,
			       struct planner_site *site, u64 hash, bool is_candidate)
{
	if (!site)
		site = planner_site_new(batch->partition, batch->mm, item->address);
	if (!site) {
		planner_refuse(batch, KSM_PARTITION_REFUSED_MEMORY, 1);
		return;
	}
	planner_site_set(batch->partition, site, hash, is_candidate);
	if (is_candidate)
		batch->counts.n_candidates++;
	else
		batch->counts.n_volatile++;
}

/* Makes a frame for an item and its partner; the partner is put back where that fails. */
static void planner_match_partner(struct planner_batch *batch, struct planner_item *item,
				  struct planner_site *partner, u64 hash)
{
	u64 start = ktime_get_ns();
	struct planner_frame *frame = planner_frame_new(batch->partition, hash, item->page);

	planner_clock(&batch->counts, KSM_PARTITION_COST_COPY, start, 1);
	if (!IS_ERR(frame) && planner_content_hash(frame->page) != hash) {
		/* Written meanwhile: a frame that nobody maps, and that is reaped. */
		planner_site_put_back(batch->partition, partner);
		planner_refuse(batch, KSM_PARTITION_REFUSED_CHANGED, 1);
		planner_frame_discard(batch->partition, frame);
		return;
	}
	if (IS_ERR(frame)) {
		planner_site_put_back(batch->partition, partner);
		planner_refuse(batch, PTR_ERR(frame) == -ENOSPC ? KSM_PARTITION_REFUSED_LIMIT :
			       KSM_PARTITION_REFUSED_MEMORY, 1);
		return;
	}
	item->frame = frame;
	partner->frame = frame;
	list_add_tail(&partner->list, &batch->partners);
}

static void planner_match_item(struct planner_batch *batch, struct planner_item *item)
{
	struct planner_partition *partition = batch->partition;
	struct planner_site *site, *partner;
	u64 start = ktime_get_ns();
	u64 hash = planner_content_hash(item->page);

	planner_clock(&batch->counts, KSM_PARTITION_COST_HASH, start, 1);
	partition->sum.pages_scanned++;
	site = planner_site_find(partition, batch->mm, item->address);
	item->frame = planner_frame_find(partition, hash, item->page, &batch->counts);
	if (item->frame) {
		if (site)
			planner_site_drop(partition, site);
		return;
	}
	if (batch->is_gated && (!site || site->hash != hash)) {
		planner_match_none(batch, item, site, hash, false);
		return;
	}
	partner = planner_match_candidate(batch, item, hash);
	if (!partner) {
		planner_match_none(batch, item, site, hash, true);
		return;
	}
	planner_match_partner(batch, item, partner, hash);
	if (site && item->frame)
		planner_site_drop(partition, site);
}

static void planner_match(struct planner_batch *batch)
{
	unsigned int i;

	for (i = 0; i < batch->n_items; i++) {
		planner_match_item(batch, &batch->items[i]);
		put_page(batch->items[i].page);
		batch->items[i].page = NULL;
		cond_resched();
	}
}

/* Replacing. */

/* The mapping of an address, if it may be merged in, locked against faults; or why not. */
static int planner_lock_vma(struct mm_struct *mm, unsigned long address,
			    struct vm_area_struct **found)
{
	struct vm_area_struct *vma = find_vma(mm, address);
	int refusal;

	if (!vma || vma->vm_start > address)
		return KSM_PARTITION_REFUSED_CHANGED;
	refusal = planner_vma_refusal(vma);
	if (refusal != PLANNER_ELIGIBLE)
		return refusal;
	/* No page has been there. */
	if (!vma->anon_vma)
		return KSM_PARTITION_REFUSED_CHANGED;
	if (vma != *found) {
		compat_vma_start_write(vma);
		/* Pages on their way to the LRU would be busy; this empties this CPU's list. */
		compat_zap_page_range(vma, address, 0);
	}
	*found = vma;
	return PLANNER_ELIGIBLE;
}

/* Merges the partners that are in an address space. Its mmap lock is held for writing. */
static void planner_replace_partners(struct planner_batch *batch, struct mm_struct *mm)
{
	struct planner_partition *partition = batch->partition;
	struct planner_site *site, *next;
	struct vm_area_struct *vma = NULL;

	list_for_each_entry_safe(site, next, &batch->partners, list) {
		int result;

		if (site->mm != mm)
			continue;
		list_del(&site->list);
		/* The page that was to share the frame could not be merged. */
		if (!page_mapped(site->frame->page)) {
			planner_site_put_back(partition, site);
			continue;
		}
		result = planner_lock_vma(mm, site->address, &vma);
		if (result == PLANNER_ELIGIBLE)
			result = planner_replace(batch, vma, site->address, site->frame->page);
		if (result == PLANNER_MERGED)
			batch->counts.n_partners++;
		if (result == KSM_PARTITION_REFUSED_BUSY || result == KSM_PARTITION_REFUSED_PINNED)
			planner_site_put_back(partition, site);
		else
			planner_site_free(site);
		cond_resched();
	}
}

/* Merges the items that have been matched. */
static void planner_replace_items(struct planner_batch *batch)
{
	struct vm_area_struct *vma = NULL;
	unsigned int i;

	for (i = 0; i < batch->n_items; i++) {
		struct planner_item *item = &batch->items[i];
		int result;

		if (!item->frame)
			continue;
		result = planner_lock_vma(batch->mm, item->address, &vma);
		if (result == PLANNER_ELIGIBLE)
			result = planner_replace(batch, vma, item->address, item->frame->page);
		if (result == PLANNER_MERGED)
			batch->counts.n_merged++;
		else
			planner_refuse(batch, result, 1);
		cond_resched();
	}
	planner_replace_partners(batch, batch->mm);
}

/* What could not be replaced, because a signal came before the mmap lock. */
static void planner_replace_none(struct planner_batch *batch)
{
	unsigned int i;

	for (i = 0; i < batch->n_items; i++)
		if (batch->items[i].frame)
			planner_refuse(batch, KSM_PARTITION_REFUSED_BUSY, 1);
}

/* Merges partners in other address spaces; they are held by mm_count only. */
static void planner_replace_elsewhere(struct planner_batch *batch)
{
	struct planner_site *site, *next;

	while (!list_empty(&batch->partners)) {
		struct mm_struct *mm = list_first_entry(&batch->partners, struct planner_site,
							list)->mm;
		bool is_locked = false;

		mmgrab(mm);
		if (mmget_not_zero(mm)) {
			is_locked = !mmap_write_lock_killable(mm);
			if (is_locked) {
				planner_replace_partners(batch, mm);
				mmap_write_unlock(mm);
			}
			mmput(mm);
		}
		if (!is_locked)
			list_for_each_entry_safe(site, next, &batch->partners, list)
				if (site->mm == mm) {
					list_del(&site->list);
					planner_site_free(site);
				}
		mmdrop(mm);
	}
}

static bool planner_has_matches(const struct planner_batch *batch)
{
	unsigned int i;

	for (i = 0; i < batch->n_items; i++)
		if (batch->items[i].frame)
			return true;
	return false;
}

/**
 * planner_merge_step() - merge the next pages of a range
 * @batch:	moves on; its partition is locked
 *
 * Context: Process context. May sleep.
 * Return: 0; -ESRCH when the address space is gone; -EINTR when a fatal signal came.
 */
int planner_merge_step(struct planner_batch *batch)
{
	int ret;

	if (!mmget_not_zero(batch->mm))
		return -ESRCH;
	ret = mmap_read_lock_killable(batch->mm);
	if (ret)
		goto put_mm;
	planner_collect(batch);
	mmap_read_unlock(batch->mm);
	batch->partition->step++;
	planner_match(batch);
	if (!planner_has_matches(batch))
		goto put_mm;
	ret = mmap_write_lock_killable(batch->mm);
	if (ret) {
		planner_replace_none(batch);
	} else {
		planner_replace_items(batch);
		mmap_write_unlock(batch->mm);
	}
	planner_replace_elsewhere(batch);
put_mm:
	mmput(batch->mm);
	return ret;
}

/* Gives the page at batch->pos a frame of its own, if it is one of the partition's. */
static void planner_unmerge_at(struct planner_batch *batch, unsigned long end)
{
	unsigned long address = batch->pos;
	struct planner_place place;
	struct page *page;
	int kind;
	u64 start;

	switch (planner_place_lock(batch->mm, address, &place)) {
	case PLANNER_PLACE_HOLE:
		batch->pos = min(end - 1, place.next - 1) + 1;
		batch->counts.n_absent += (batch->pos - address) >> PAGE_SHIFT;
		return;
	case PLANNER_PLACE_HUGE:
		batch->pos = min(end - 1, place.next - 1) + 1;
		batch->counts.n_already += (batch->pos - address) >> PAGE_SHIFT;
		return;
	case PLANNER_PLACE_LOCKED:
		break;
	}
	batch->pos += PAGE_SIZE;
	kind = planner_pte_refusal(READ_ONCE(*place.ptep), &page);
	if (kind == PLANNER_MERGED && !planner_frame_of(batch->partition, page))
		kind = KSM_PARTITION_REFUSED_FOREIGN;
	planner_place_unlock(&place);

	if (kind == PLANNER_ABSENT) {
		batch->counts.n_absent++;
	} else if (kind == KSM_PARTITION_REFUSED_FOREIGN) {
		planner_refuse(batch, kind, 1);
	} else if (kind != PLANNER_MERGED) {
		batch->counts.n_already++;
	} else {
		start = ktime_get_ns();
		if (compat_break_sharing(batch->mm, address)) {
			planner_refuse(batch, KSM_PARTITION_REFUSED_MEMORY, 1);
		} else {
			planner_clock(&batch->counts, KSM_PARTITION_COST_UNMERGE, start, 1);
			batch->counts.n_unmerged++;
		}
		cond_resched();
	}
}

/**
 * planner_unmerge_step() - unmerge the next pages of a range
 * @batch:	moves on; its partition is locked
 *
 * Context: Process context. May sleep.
 * Return: as planner_merge_step().
 */
int planner_unmerge_step(struct planner_batch *batch)
{
	unsigned long from = batch->pos;
	int i, ret;

	if (!mmget_not_zero(batch->mm))
		return -ESRCH;
	ret = mmap_read_lock_killable(batch->mm);
	if (ret)
		goto put_mm;
	for (i = 0; i < PLANNER_PART_PAGES && batch->pos < batch->end; i++) {
		struct vm_area_struct *vma = find_vma(batch->mm, batch->pos);

		if (!vma || vma->vm_start > batch->pos) {
			unsigned long end = vma ? min(batch->end, vma->vm_start) : batch->end;

			batch->counts.n_absent += (end - batch->pos) >> PAGE_SHIFT;
			batch->pos = end;
		} else if (vma_is_anonymous(vma)) {
			planner_unmerge_at(batch, min(batch->end, vma->vm_end));
		} else {
			unsigned long end = min(batch->end, vma->vm_end);

			batch->counts.n_already += (end - batch->pos) >> PAGE_SHIFT;
			batch->pos = end;
		}
	}
	mmap_read_unlock(batch->mm);
	batch->counts.n_requested += (batch->pos - from) >> PAGE_SHIFT;
	planner_sites_forget(batch->partition, batch->mm, from, batch->pos);
put_mm:
	mmput(batch->mm);
	return ret;
}

/**
 * planner_add_counts() - add what a call did to what a partition tells
 * @partition:	locked
 * @counts:	of the call
 */
void planner_add_counts(struct planner_partition *partition,
			const struct ksm_partition_counts *counts)
{
	struct ksm_partition_counters *sum = &partition->sum;
	unsigned int i;

	sum->n_merged += counts->n_merged + counts->n_partners;
	sum->n_unmerged += counts->n_unmerged;
	sum->n_killed += counts->n_killed;
	for (i = 0; i < KSM_PARTITION_REFUSED_N; i++)
		sum->refused[i] += counts->refused[i];
	for (i = 0; i < KSM_PARTITION_COST_N; i++) {
		sum->cost_n[i] += counts->cost_n[i];
		sum->cost_ns[i] += counts->cost_ns[i];
	}
}

/**
 * planner_run() - do all steps of a call
 * @batch:		the call
 * @step:		planner_merge_step() or planner_unmerge_step()
 * @until_unlinked:	give up when the partition loses its name
 *
 * Context: Process context; takes the partition's lock.
 * Return: 0; -ESRCH, -EINTR; -ENOENT when unlinked. The counts tell how far it got.
 */
int planner_run(struct planner_batch *batch, int (*step)(struct planner_batch *batch),
		bool until_unlinked)
{
	struct planner_partition *partition = batch->partition;
	u64 start = ktime_get_ns();
	int ret = 0;

	while (!ret && batch->pos < batch->end) {
		if (signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		if (until_unlinked && !READ_ONCE(partition->is_linked)) {
			ret = -ENOENT;
			break;
		}
		if (mutex_lock_interruptible(&partition->lock)) {
			ret = -EINTR;
			break;
		}
		ret = step(batch);
		mutex_unlock(&partition->lock);
		cond_resched();
	}
	batch->counts.walked_to = batch->pos;
	batch->counts.total_ns = ktime_get_ns() - start;
	mutex_lock(&partition->lock);
	partition->sum.calls++;
	planner_add_counts(partition, &batch->counts);
	mutex_unlock(&partition->lock);
	return ret;
}
