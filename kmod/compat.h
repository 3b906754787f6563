/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels this module is built for. PLANNER_HAVE_* come from Kbuild, which
 * compiles each file of probe/ with the kernel's own flags. No other file knows of versions.
 */
#ifndef KSM_PLANNER_COMPAT_H
#define KSM_PLANNER_COMPAT_H

#include <linux/mm.h>

#if !defined(CONFIG_X86_64)
#error "ksm_planner supports x86-64 only: page tables of other machines have not been looked at"
#endif
#if PAGE_SIZE != 4096
#error "ksm_planner needs pages of 4096 bytes"
#endif
#ifndef PLANNER_HAVE_FOLIO
#error "ksm_planner supports Linux 6.1 and 6.12; this kernel is older, or its headers do not build"
#endif

/*
 * page_mapcount() was removed by "mm: remove page_mapcount()" (6.11); what /proc/kpagecount shows
 * since is folio_precise_page_mapcount(), which modules cannot see.
 */
#ifdef PLANNER_HAVE_PAGE_MAPCOUNT
static inline int compat_page_mapcount(struct page *page)
{
	return page_mapcount(page);
}
#else
static inline int compat_page_mapcount(struct page *page)
{
	struct folio *folio = page_folio(page);
	int n_mappings = atomic_read(&page->_mapcount) + 1;

	if (page_mapcount_is_type(n_mappings))
		n_mappings = 0;
	if (folio_test_large(folio))
		n_mappings += folio_entire_mapcount(folio);
	return n_mappings;
}
#endif

/* VM_DROPPABLE came with "mm: add MAP_DROPPABLE for designating always lazily freeable mappings"
 * (6.11).
 */
#ifdef PLANNER_HAVE_VM_DROPPABLE
#define COMPAT_VM_DROPPABLE	VM_DROPPABLE
#else
#define COMPAT_VM_DROPPABLE	VM_NONE
#endif

#ifdef VM_SHADOW_STACK
#define COMPAT_VM_SHADOW_STACK	VM_SHADOW_STACK
#else
#define COMPAT_VM_SHADOW_STACK	VM_NONE
#endif

/*
 * zap_page_range() was removed by "mm: remove zap_page_range and create zap_vma_pages" (6.3), which
 * exported zap_page_range_single() instead. A size of 0 zaps nothing, but like any other empties
 * this CPU's list of pages on their way to the LRU, which have a reference from there.
 */
static inline void compat_zap_page_range(struct vm_area_struct *vma, unsigned long address,
					 unsigned long size)
{
#ifdef PLANNER_HAVE_ZAP_PAGE_RANGE
	zap_page_range(vma, address, size);
#else
	zap_page_range_single(vma, address, size, NULL);
#endif
}

/* Locks of single mappings came with "mm: introduce vma->vm_lock and use it" (6.4). */
static inline void compat_vma_start_write(struct vm_area_struct *vma)
{
#ifdef PLANNER_HAVE_VMA_START_WRITE
	vma_start_write(vma);
#endif
}

/* "mm: introduce vma->vm_flags wrapper functions" (6.3) made vm_flags constant. */
static inline void compat_vm_flags_clear(struct vm_area_struct *vma, unsigned long flags)
{
#ifdef PLANNER_HAVE_VM_FLAGS_CLEAR
	vm_flags_clear(vma, flags);
#else
	vma->vm_flags &= ~flags;
#endif
}

/*
 * Makes the page at an address the process's own, as a write to it would; the mmap lock is held.
 * 0 or an error. get_user_pages_remote() lost an argument by "mm/gup: remove vmas parameter from
 * get_user_pages_remote()" (6.5).
 */
static inline int compat_break_sharing(struct mm_struct *mm, unsigned long address)
{
	struct page *page;
	long ret;

#ifdef PLANNER_HAVE_GUP_VMAS
	ret = get_user_pages_remote(mm, address, 1, FOLL_WRITE | FOLL_FORCE, &page, NULL, NULL);
#else
	ret = get_user_pages_remote(mm, address, 1, FOLL_WRITE | FOLL_FORCE, &page, NULL);
#endif
	if (ret == 1)
		put_page(page);
	return ret == 1 ? 0 : ret ? ret : -EFAULT;
}

/* "kobject: make get_ownership() take a const *" (6.2) */
#ifdef PLANNER_HAVE_CONST_OWNERSHIP
#define compat_const_kobject	const struct kobject
#else
#define compat_const_kobject	struct kobject
#endif

#endif /* KSM_PLANNER_COMPAT_H */
