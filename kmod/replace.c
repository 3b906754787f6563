// SPDX-License-Identifier: GPL-2.0
/*
 * One page-table entry: what it maps, and mapping a merged frame instead.
 *
 * Replacing goes like this, under the mmap lock for writing, so that no fault and no GUP but
 * GUP-fast comes in between:
 *
 *  1. Under the page-table lock: the page must be anonymous, of order 0, mapped here only, not
 *     locked, and equal to the frame. The entry is cleared; then the page must have no reference but
 *     the mapping's, the swap cache's and ours. GUP-fast takes its reference first and then looks at
 *     the entry again, so it either has been counted here or gives up. Otherwise the entry is put
 *     back as it was.
 *  2. An entry without access takes its place: neither a CPU nor GUP-fast gets at the page by it.
 *  3. The range is zapped: accounting, reverse map, notifiers of secondary MMUs, and at the end the
 *     TLBs of all CPUs. Until then a CPU may have written by an old translation, and a guest by its
 *     own page tables.
 *  4. From here on nobody can write to the old page, which our reference keeps. It is compared for
 *     good. If equal, the frame is mapped. If not, its content is mapped in a page of its own, and
 *     that one is at once made an anonymous page again, by a copy on write.
 *  5. VM_MIXEDMAP, which vm_insert_page() has set, is cleared: with it, mlock() would do nothing,
 *     and mappings would not merge any more.
 *
 * The page table is there and the entry empty, so inserting cannot fail in 4. If it did, memory
 * would be lost: the processes are killed rather than left with zeros.
 */
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/timekeeping.h>
#include <linux/userfaultfd_k.h>

#include "partition_internal.h"

/* Looks at a page table that another CPU keeps changing. */
#define PLANNER_TRIES	16

/**
 * planner_place_lock() - find the page-table entry of an address and lock it
 * @mm:		address space; its mmap lock is held
 * @address:	where
 * @place:	filled in
 *
 * RCU keeps the table from being freed until its lock is held (pte_offset_map_lock() is not exported
 * from 6.5 on).
 *
 * Return: what is there; only an entry is locked.
 */
enum planner_place_kind planner_place_lock(struct mm_struct *mm, unsigned long address,
					   struct planner_place *place)
{
	pgd_t *pgdp = pgd_offset(mm, address);
	p4d_t *p4dp;
	pud_t *pudp;
	pmd_t *pmdp;
	int i;

	place->next = (address & PGDIR_MASK) + PGDIR_SIZE;
	if (pgd_none(READ_ONCE(*pgdp)))
		return PLANNER_PLACE_HOLE;
	p4dp = p4d_offset(pgdp, address);
	place->next = (address & P4D_MASK) + P4D_SIZE;
	if (p4d_none(READ_ONCE(*p4dp)))
		return PLANNER_PLACE_HOLE;
	pudp = pud_offset(p4dp, address);
	place->next = (address & PUD_MASK) + PUD_SIZE;
	if (pud_none(READ_ONCE(*pudp)))
		return PLANNER_PLACE_HOLE;
	if (pud_bad(READ_ONCE(*pudp)))
		return PLANNER_PLACE_HUGE;
	pmdp = pmd_offset(pudp, address);
	place->next = (address & PMD_MASK) + PMD_SIZE;
	for (i = 0; i < PLANNER_TRIES; i++) {
		pmd_t pmd = READ_ONCE(*pmdp);

		if (pmd_none(pmd))
			return PLANNER_PLACE_HOLE;
		if (!pmd_present(pmd) || pmd_trans_huge(pmd) || pmd_devmap(pmd) || pmd_bad(pmd))
			return PLANNER_PLACE_HUGE;
		rcu_read_lock();
		place->ptl = pte_lockptr(mm, &pmd);
		place->ptep = pte_offset_kernel(&pmd, address);
		spin_lock(place->ptl);
		if (pmd_same(pmd, READ_ONCE(*pmdp))) {
			/* sparse does not know of functions that lock at times. */
			__release(place->ptl);
			__release(RCU);
			return PLANNER_PLACE_LOCKED;
		}
		spin_unlock(place->ptl);
		rcu_read_unlock();
		cpu_relax();
	}
	return PLANNER_PLACE_HUGE;
}

/**
 * planner_place_unlock() - undo planner_place_lock()
 * @place:	a locked entry
 */
void planner_place_unlock(struct planner_place *place)
{
	__acquire(RCU);
	__acquire(place->ptl);
	spin_unlock(place->ptl);
	rcu_read_unlock();
}

/**
 * planner_vma_refusal() - why nothing of a mapping is merged
 * @vma:	the mapping; its mmap lock is held
 *
 * Return: PLANNER_ELIGIBLE or KSM_PARTITION_REFUSED_*.
 */
int planner_vma_refusal(struct vm_area_struct *vma)
{
	if (vma->vm_flags & VM_HUGETLB)
		return KSM_PARTITION_REFUSED_HUGETLB;
	/* An anonymous mapping without anon_vma has no page yet: let its holes be counted. */
	if (!vma_is_anonymous(vma))
		return KSM_PARTITION_REFUSED_MAPPING;
	if (vma->vm_flags & (VM_SHARED | VM_MAYSHARE | VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_DONTEXPAND |
			     VM_WIPEONFORK | COMPAT_VM_DROPPABLE | COMPAT_VM_SHADOW_STACK))
		return KSM_PARTITION_REFUSED_MAPPING;
	if (vma->vm_flags & VM_LOCKED)
		return KSM_PARTITION_REFUSED_LOCKED;
	if (vma->vm_flags & __VM_UFFD_FLAGS)
		return KSM_PARTITION_REFUSED_USERFAULTFD;
	if (vma->vm_flags & VM_MERGEABLE)
		return KSM_PARTITION_REFUSED_MERGEABLE;
	return PLANNER_ELIGIBLE;
}

/**
 * planner_pte_refusal() - what an entry maps, and why that is not merged
 * @pte:	the entry; its page-table lock is held
 * @page:	the page, where the result is PLANNER_ELIGIBLE or PLANNER_MERGED
 *
 * Return: PLANNER_ELIGIBLE, PLANNER_ABSENT, PLANNER_MERGED (in some partition), or
 * KSM_PARTITION_REFUSED_*.
 */
int planner_pte_refusal(pte_t pte, struct page **page)
{
	struct folio *folio;

	if (pte_none(pte))
		return PLANNER_ABSENT;
	if (!pte_present(pte))
		return KSM_PARTITION_REFUSED_SWAPPED;
	if (is_zero_pfn(pte_pfn(pte)))
		return KSM_PARTITION_REFUSED_ZERO_PAGE;
	if (pte_special(pte) || pte_devmap(pte) || !pfn_valid(pte_pfn(pte)))
		return KSM_PARTITION_REFUSED_SPECIAL;
	*page = pte_page(pte);
	folio = page_folio(*page);
	if (planner_page_is_merged(*page))
		return PLANNER_MERGED;
	if (!folio_test_anon(folio) || PageHWPoison(*page) || is_zone_device_page(*page))
		return KSM_PARTITION_REFUSED_SPECIAL;
	if (folio_test_ksm(folio))
		return KSM_PARTITION_REFUSED_MERGEABLE;
	if (folio_test_large(folio))
		return KSM_PARTITION_REFUSED_THP;
	if (folio_test_mlocked(folio))
		return KSM_PARTITION_REFUSED_LOCKED;
	if (compat_page_mapcount(*page) != 1)
		return KSM_PARTITION_REFUSED_SHARED;
	if (folio_maybe_dma_pinned(folio))
		return KSM_PARTITION_REFUSED_PINNED;
	/* About to be thrown away (MADV_FREE). */
	if (!folio_test_swapbacked(folio))
		return KSM_PARTITION_REFUSED_BUSY;
	return PLANNER_ELIGIBLE;
}

/**
 * planner_page_get() - the page at an address, if it may be merged
 * @mm:		address space, held by mm_count; no mmap lock is held
 * @address:	where
 *
 * Context: Process context. May sleep.
 * Return: the page with a reference, or NULL.
 */
struct page *planner_page_get(struct mm_struct *mm, unsigned long address)
{
	struct planner_place place;
	struct vm_area_struct *vma;
	struct page *page = NULL;

	if (!mmget_not_zero(mm))
		return NULL;
	if (mmap_read_lock_killable(mm))
		goto put_mm;
	vma = find_vma(mm, address);
	if (vma && vma->vm_start <= address && planner_vma_refusal(vma) == PLANNER_ELIGIBLE &&
	    planner_place_lock(mm, address, &place) == PLANNER_PLACE_LOCKED) {
		if (planner_pte_refusal(READ_ONCE(*place.ptep), &page) != PLANNER_ELIGIBLE ||
		    !try_get_page(page))
			page = NULL;
		planner_place_unlock(&place);
	}
	mmap_read_unlock(mm);
put_mm:
	mmput(mm);
	return page;
}

/* The entry for the same page by which nobody gets at it; pte_modify() needs what is not exported. */
static pte_t planner_without_access(pte_t pte)
{
	pteval_t old = pte_val(pte);
	pteval_t val = (old & ~(pteval_t)(_PAGE_PRESENT | _PAGE_RW)) | _PAGE_PROTNONE;

	return __pte(flip_protnone_guard(old, val, PTE_PFN_MASK));
}

/*
 * Steps 1 and 2. Return: PLANNER_ELIGIBLE with *old, referenced and locked; or why not, with nothing
 * changed.
 */
static int planner_guard(struct mm_struct *mm, unsigned long address, struct page *merged,
			 struct page **old)
{
	struct planner_place place;
	struct page *page;
	int refusal;
	pte_t pte;

	switch (planner_place_lock(mm, address, &place)) {
	case PLANNER_PLACE_HOLE:
		return KSM_PARTITION_REFUSED_CHANGED;
	case PLANNER_PLACE_HUGE:
		return KSM_PARTITION_REFUSED_THP;
	case PLANNER_PLACE_LOCKED:
		break;
	}
	refusal = planner_pte_refusal(READ_ONCE(*place.ptep), &page);
	if (refusal == PLANNER_ABSENT || refusal == PLANNER_MERGED)
		refusal = KSM_PARTITION_REFUSED_CHANGED;
	if (refusal != PLANNER_ELIGIBLE)
		goto unlock;
	refusal = KSM_PARTITION_REFUSED_BUSY;
	if (!trylock_page(page))
		goto unlock;
	if (!try_get_page(page))
		goto unlock_page;
	if (!planner_is_equal(page, merged)) {
		refusal = KSM_PARTITION_REFUSED_CHANGED;
		goto put_page;
	}
	pte = ptep_get_and_clear(mm, address, place.ptep);
	if (page_ref_count(page) != 2 + folio_test_swapcache(page_folio(page))) {
		set_pte(place.ptep, pte);
		refusal = folio_maybe_dma_pinned(page_folio(page)) ? KSM_PARTITION_REFUSED_PINNED :
							KSM_PARTITION_REFUSED_BUSY;
		goto put_page;
	}
	set_pte(place.ptep, planner_without_access(pte));
	planner_place_unlock(&place);
	*old = page;
	return PLANNER_ELIGIBLE;

put_page:
	put_page(page);
unlock_page:
	unlock_page(page);
unlock:
	planner_place_unlock(&place);
	return refusal;
}

/* A page is lost: nobody who has the memory may go on. Return: how many were killed. */
static unsigned int planner_kill(struct mm_struct *mm, unsigned long address, int error)
{
	struct task_struct *process, *thread;
	unsigned int n_killed = 0;

	rcu_read_lock();
	for_each_process_thread(process, thread) {
		if (READ_ONCE(thread->mm) != mm)
			continue;
		pr_err("page %#lx of process %d (%s) could not be put back (error %d): killed\n",
		       address, task_pid_nr(thread), thread->comm, error);
		send_sig(SIGKILL, thread, 1);
		n_killed++;
	}
	rcu_read_unlock();
	return n_killed;
}

/**
 * planner_replace() - map a merged frame where an equal page is
 * @batch:	for the spare page and the counts
 * @vma:	an eligible mapping with @address; the mmap lock is held for writing
 * @address:	where
 * @merged:	the frame
 *
 * Context: Process context. May sleep.
 * Return: PLANNER_MERGED or KSM_PARTITION_REFUSED_*.
 */
int planner_replace(struct planner_batch *batch, struct vm_area_struct *vma, unsigned long address,
		    struct page *merged)
{
	u64 start = ktime_get_ns();
	struct page *old, *page;
	bool is_equal;
	int refusal, ret;

	if (!batch->spare)
		batch->spare = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY);
	if (!batch->spare)
		return KSM_PARTITION_REFUSED_MEMORY;
	refusal = planner_guard(vma->vm_mm, address, merged, &old);
	if (refusal != PLANNER_ELIGIBLE) {
		planner_clock(&batch->counts, KSM_PARTITION_COST_REFUSE, start, 1);
		return refusal;
	}
	compat_zap_page_range(vma, address, PAGE_SIZE);
	unlock_page(old);

	is_equal = planner_is_equal(old, merged);
	page = merged;
	if (!is_equal) {
		page = batch->spare;
		copy_highpage(page, old);
		__SetPageUptodate(page);
	}
	ret = vm_insert_page(vma, address, page);
	compat_vm_flags_clear(vma, VM_MIXEDMAP);
	put_page(old);
	if (ret) {
		batch->counts.n_killed += planner_kill(vma->vm_mm, address, ret);
		return KSM_PARTITION_REFUSED_MEMORY;
	}
	if (is_equal) {
		planner_clock(&batch->counts, KSM_PARTITION_COST_MERGE, start, 1);
		return PLANNER_MERGED;
	}
	put_page(batch->spare);
	batch->spare = NULL;
	/* Where that fails, the content is right, and the page cannot be swapped. */
	compat_break_sharing(vma->vm_mm, address);
	planner_clock(&batch->counts, KSM_PARTITION_COST_REFUSE, start, 1);
	return KSM_PARTITION_REFUSED_CHANGED;
}
