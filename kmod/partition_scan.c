// SPDX-License-Identifier: GPL-2.0
/*
 * Background scanning of partitions without KSM_SYNC: a thread for each, that merges in the attached
 * ranges, pages_to_scan pages at a time, and then sleeps for sleep_millisecs.
 *
 * As with ksmd, a page that equals a merged one is merged when it is seen; to be a candidate it must
 * have been found unchanged once. Attaching and detaching are an extension: the proposal does not
 * say what such a partition looks at.
 */
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "partition_internal.h"

#define PLANNER_PAGES_TO_SCAN	100
#define PLANNER_SLEEP_MS	20
/* How often it looks whether merging has been allowed, when it is not. */
#define PLANNER_IDLE_MS		1000

/* Removes a range; the cursor moves on. The partition is locked. */
static void planner_range_free(struct planner_partition *partition, struct planner_range *range)
{
	if (partition->cursor == range)
		partition->cursor = NULL;
	list_del(&range->list);
	partition->sum.n_ranges--;
	mmdrop(range->mm);
	kfree(range);
}

static struct planner_range *planner_range_add(struct planner_partition *partition,
					       struct mm_struct *mm, unsigned long start,
					       unsigned long end, struct list_head *after)
{
	struct planner_range *range = kzalloc(sizeof(*range), GFP_KERNEL_ACCOUNT);

	if (!range)
		return NULL;
	mmgrab(mm);
	range->mm = mm;
	range->start = start;
	range->end = end;
	list_add(&range->list, after);
	partition->sum.n_ranges++;
	return range;
}

/*
 * Cuts [start, end) out of all ranges of an address space and counts the pages. The partition is
 * locked. 0 or -ENOMEM.
 */
static int planner_range_cut(struct planner_partition *partition, struct mm_struct *mm,
			     unsigned long start, unsigned long end, u64 *n_pages)
{
	struct planner_range *range, *next;

	list_for_each_entry_safe(range, next, &partition->ranges, list) {
		unsigned long from = max(start, range->start), to = min(end, range->end);

		if (range->mm != mm || from >= to)
			continue;
		if (range->start < from && to < range->end) {
			if (!planner_range_add(partition, mm, to, range->end, &range->list))
				return -ENOMEM;
			range->end = from;
		} else if (range->start < from) {
			range->end = from;
		} else if (to < range->end) {
			range->start = to;
		} else {
			planner_range_free(partition, range);
		}
		*n_pages += (to - from) >> PAGE_SHIFT;
	}
	return 0;
}

/**
 * planner_attach() - let the scanner look at a range
 * @partition:	the partition
 * @mm:		address space
 * @start:	first address
 * @end:	end of [start, end)
 * @counts:	n_requested; n_already: attached before
 *
 * Context: Process context. May sleep.
 * Return: 0; -EOPNOTSUPP without scanner; -ENOMEM, -EINTR.
 */
int planner_attach(struct planner_partition *partition, struct mm_struct *mm, unsigned long start,
		   unsigned long end, struct ksm_partition_counts *counts)
{
	int ret = 0;

	if (mutex_lock_interruptible(&partition->lock))
		return -EINTR;
	if (!partition->scanner)
		ret = -EOPNOTSUPP;
	else if (start < end)
		ret = planner_range_cut(partition, mm, start, end, &counts->n_already);
	if (!ret && start < end &&
	    !planner_range_add(partition, mm, start, end, partition->ranges.prev))
		ret = -ENOMEM;
	if (!ret) {
		counts->n_requested = (end - start) >> PAGE_SHIFT;
		counts->walked_to = end;
	}
	partition->is_kicked = true;
	mutex_unlock(&partition->lock);
	wake_up_interruptible(&partition->wake);
	return ret;
}

/**
 * planner_detach() - let the scanner look at a range no longer
 * @partition:	the partition
 * @mm:		address space
 * @start:	first address
 * @end:	end of [start, end)
 * @counts:	n_requested; n_already: attached before; n_absent: not
 *
 * What is merged stays merged; candidates of the range are forgotten.
 *
 * Context: Process context. May sleep.
 * Return: as planner_attach().
 */
int planner_detach(struct planner_partition *partition, struct mm_struct *mm, unsigned long start,
		   unsigned long end, struct ksm_partition_counts *counts)
{
	int ret;

	if (mutex_lock_interruptible(&partition->lock))
		return -EINTR;
	ret = partition->scanner ? 0 : -EOPNOTSUPP;
	if (!ret)
		ret = planner_range_cut(partition, mm, start, end, &counts->n_already);
	if (!ret) {
		planner_sites_forget(partition, mm, start, end);
		counts->n_requested = (end - start) >> PAGE_SHIFT;
		counts->n_absent = counts->n_requested - counts->n_already;
		counts->walked_to = end;
	}
	mutex_unlock(&partition->lock);
	return ret;
}

/* The range to go on with, NULL where there is none. The partition is locked. */
static struct planner_range *planner_scan_range(struct planner_partition *partition)
{
	struct planner_range *range = partition->cursor;

	if (range)
		return range;
	range = list_first_entry_or_null(&partition->ranges, struct planner_range, list);
	partition->cursor = range;
	if (range)
		partition->cursor_address = range->start;
	return range;
}

/* Moves on to the next range; false after the last one. The partition is locked. */
static bool planner_scan_next(struct planner_partition *partition)
{
	struct planner_range *range = partition->cursor;

	if (list_is_last(&range->list, &partition->ranges)) {
		partition->cursor = NULL;
		partition->sum.full_scans++;
		return false;
	}
	partition->cursor = list_next_entry(range, list);
	partition->cursor_address = partition->cursor->start;
	return true;
}

/*
 * Looks at most `budget` times, at one range. What is left of the budget: like ksmd's, a turn ends
 * with the last range. The partition is locked.
 */
static unsigned int planner_scan_some(struct planner_partition *partition,
				      struct planner_batch *batch, unsigned int budget)
{
	struct planner_range *range = planner_scan_range(partition);
	struct mem_cgroup *memcg, *before;
	int ret;

	if (!range)
		return 0;
	/* Merged pages are the scanned process's, not the thread's. */
	memcg = get_mem_cgroup_from_mm(range->mm);
	before = set_active_memcg(memcg);
	memset(&batch->counts, 0, sizeof(batch->counts));
	batch->mm = range->mm;
	batch->pos = clamp(partition->cursor_address, range->start, range->end);
	batch->end = range->end;
	batch->max_looks = min_t(unsigned int, budget, PLANNER_PART_PAGES);
	batch->n_looks = 0;
	ret = planner_merge_step(batch);
	set_active_memcg(before);
	mem_cgroup_put(memcg);
	planner_add_counts(partition, &batch->counts);
	partition->cursor_address = batch->pos;
	budget -= min(budget, max(batch->n_looks, 1U));
	if ((ret || batch->pos >= range->end) && !planner_scan_next(partition))
		budget = 0;
	if (ret == -ESRCH)
		planner_range_free(partition, range);
	return budget;
}

static void planner_scan_turn(struct planner_partition *partition, struct planner_batch *batch)
{
	unsigned int n_left = READ_ONCE(partition->sum.pages_to_scan);

	while (n_left && !kthread_should_stop()) {
		mutex_lock(&partition->lock);
		n_left = planner_scan_some(partition, batch, n_left);
		mutex_unlock(&partition->lock);
		cond_resched();
	}
}

static int planner_scan(void *data)
{
	struct planner_partition *partition = data;
	struct planner_batch *batch = planner_batch_new(partition, NULL, 0, 0);

	if (batch)
		batch->is_gated = true;
	while (!kthread_should_stop()) {
		unsigned int ms;

		/* First, so that a change from here on is seen before it sleeps. */
		WRITE_ONCE(partition->is_kicked, false);
		ms = READ_ONCE(partition->sum.sleep_millisecs);
		if (batch && READ_ONCE(planner_allow_merge))
			planner_scan_turn(partition, batch);
		else
			ms = PLANNER_IDLE_MS;
		if (!READ_ONCE(partition->sum.n_ranges))
			ms = UINT_MAX;
		wait_event_interruptible_timeout(partition->wake, kthread_should_stop() ||
						 READ_ONCE(partition->is_kicked),
						 msecs_to_jiffies(ms));
	}
	planner_batch_free(batch);
	return 0;
}

/**
 * planner_scan_start() - start the scanner of a new partition, unless it is synchronous
 * @partition:	with its name; nobody else has it yet
 *
 * Return: 0 or a negative error.
 */
int planner_scan_start(struct planner_partition *partition)
{
	struct task_struct *thread;

	if (partition->is_sync)
		return 0;
	partition->sum.pages_to_scan = PLANNER_PAGES_TO_SCAN;
	partition->sum.sleep_millisecs = PLANNER_SLEEP_MS;
	thread = kthread_run(planner_scan, partition, "ksm/%s", partition->name);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	partition->scanner = thread;
	return 0;
}

/**
 * planner_scan_stop() - stop the scanner, if there is one, and forget what was attached
 * @partition:	not locked
 *
 * Context: Process context. May sleep.
 */
void planner_scan_stop(struct planner_partition *partition)
{
	struct task_struct *scanner;

	mutex_lock(&partition->lock);
	scanner = partition->scanner;
	partition->scanner = NULL;
	mutex_unlock(&partition->lock);
	if (!scanner)
		return;
	kthread_stop(scanner);
	mutex_lock(&partition->lock);
	while (!list_empty(&partition->ranges))
		planner_range_free(partition, list_first_entry(&partition->ranges,
							       struct planner_range, list));
	mutex_unlock(&partition->lock);
}
