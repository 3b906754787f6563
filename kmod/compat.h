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

#endif /* KSM_PLANNER_COMPAT_H */
