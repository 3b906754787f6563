// SPDX-License-Identifier: GPL-2.0
/*
 * The walk: address space -> mappings -> page tables -> entries.
 *
 * The kernel's own page walkers are not exported, so this one is open-coded for x86-64. It only
 * looks: it neither faults anything in, nor takes references by GUP (which would set accessed bits
 * and unshare pages), nor writes to an entry.
 *
 * Locks, from the outside in:
 *
 *	dump->lock		the caller's
 *	mm->mmap_lock, read	for one step: some mappings without pages, or one page table
 *	page-table lock		for the entries of that page table
 *
 * The reference taken to a page under the page-table lock keeps the frame what it was, whatever
 * becomes of the entry afterwards.
 */
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/string.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

/* Mappings and empty stretches looked at under the mmap lock at once. */
#define PLANNER_LOOKS	64
/* Looks at a page table that another CPU keeps changing. */
#define PLANNER_TRIES	16
/* What kind of memory a page is. */
#define PLANNER_KINDS	(PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM)

static const struct {
	unsigned long vm;
	u32 flag;
} planner_vm_flags[] = {
	{ VM_MERGEABLE, PAGEHASH_VMA_ADVISED },
	{ VM_SHARED, PAGEHASH_VMA_SHARED },
	{ VM_MAYSHARE, PAGEHASH_VMA_MAYSHARE },
	{ VM_PFNMAP, PAGEHASH_VMA_PFNMAP },
	{ VM_IO, PAGEHASH_VMA_IO },
	{ VM_DONTEXPAND, PAGEHASH_VMA_DONTEXPAND },
	{ VM_HUGETLB, PAGEHASH_VMA_HUGETLB },
	{ VM_MIXEDMAP, PAGEHASH_VMA_MIXEDMAP },
	{ COMPAT_VM_DROPPABLE, PAGEHASH_VMA_DROPPABLE },
	{ VM_LOCKED, PAGEHASH_VMA_LOCKED },
	{ VM_HUGEPAGE, PAGEHASH_VMA_HUGEPAGE },
	{ VM_NOHUGEPAGE, PAGEHASH_VMA_NOHUGEPAGE },
	{ __VM_UFFD_FLAGS, PAGEHASH_VMA_USERFAULTFD },
	{ VM_WIPEONFORK, PAGEHASH_VMA_WIPEONFORK },
	{ VM_READ, PAGEHASH_VMA_READ },
	{ VM_WRITE, PAGEHASH_VMA_WRITE },
	{ VM_EXEC, PAGEHASH_VMA_EXEC },
};

/* Is a mapping without file the heap or the stack, as /proc/PID/maps sees it? */
static bool planner_is_heap(const struct vm_area_struct *vma)
{
	return vma->vm_start < vma->vm_mm->brk && vma->vm_end > vma->vm_mm->start_brk;
}

static bool planner_is_stack(const struct vm_area_struct *vma)
{
	return vma->vm_start <= vma->vm_mm->start_stack && vma->vm_end >= vma->vm_mm->start_stack;
}

/* PAGEHASH_VMA_* of a mapping. The mmap lock is held. */
static u32 planner_vma_flags(struct vm_area_struct *vma)
{
	u32 flags = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(planner_vm_flags); i++)
		if (vma->vm_flags & planner_vm_flags[i].vm)
			flags |= planner_vm_flags[i].flag;
	if (vma_is_dax(vma))
		flags |= PAGEHASH_VMA_DAX;
	if (vma->vm_file)
		flags |= PAGEHASH_VMA_FILE;
	else if (vma->vm_ops && vma->vm_ops->name)
		;
	else if (planner_is_heap(vma))
		flags |= PAGEHASH_VMA_HEAP;
	else if (planner_is_stack(vma))
		flags |= PAGEHASH_VMA_STACK;
	return flags;
}

/* Copies the name of a mapping, as the header defines it; returns its length, 0 for none. */
static size_t planner_vma_name(struct vm_area_struct *vma, u32 flags, char *buffer, size_t size)
{
	struct name_snapshot snapshot;
	const char *name = NULL;
	ssize_t length;

	if (vma->vm_file) {
		take_dentry_name_snapshot(&snapshot, file_dentry(vma->vm_file));
		length = strscpy(buffer, kbasename(snapshot.name.name), size);
		release_dentry_name_snapshot(&snapshot);
	} else {
		if (vma->vm_ops && vma->vm_ops->name)
			name = vma->vm_ops->name(vma);
		else if (flags & PAGEHASH_VMA_HEAP)
			name = "[heap]";
		else if (flags & PAGEHASH_VMA_STACK)
			name = "[stack]";
		if (!name)
			return 0;
		length = strscpy(buffer, name, size);
	}
	return length < 0 ? size - 1 : length;
}

/* Lists a mapping, unless it is the one listed last and unchanged. The mmap lock is held. */
static void planner_list_vma(struct planner_dump *dump, struct vm_area_struct *vma, u32 flags)
{
	const struct planner_seen now = {
		.end = vma->vm_end,
		.flags = vma->vm_flags,
		.pgoff = vma->vm_pgoff - (vma->vm_start >> PAGE_SHIFT),
		.file = vma->vm_file,
	};
	char name[NAME_MAX + 1];
	struct pagehash_vma *slot;
	size_t length, at;

	if (!memcmp(&now, &dump->seen, sizeof(now)))
		return;
	dump->seen = now;
	slot = &planner_push(dump)->vma;
	slot->start = max(vma->vm_start, dump->pos);
	slot->end = min(vma->vm_end, dump->end);
	slot->flags = flags;
	slot->type = PAGEHASH_TYPE_VMA;
	dump->sum.n_vmas++;

	length = planner_vma_name(vma, flags, name, sizeof(name));
	for (at = 0; at < length; at += sizeof_field(struct pagehash_name, text)) {
		struct pagehash_name *part = &planner_push(dump)->name;

		memcpy(part->text, name + at, min(length - at, sizeof(part->text)));
		part->length = length;
		part->type = PAGEHASH_TYPE_NAME;
		part->index = slot->n_names++;
		dump->sum.n_names++;
	}
}

/*
 * Why the pages of a mapping are not looked at: a PAGEHASH_SKIP_*, or -1 where they are.
 *
 * Pages of memfd_secret are not in the kernel's own map of memory; reading one would be an oops.
 */
static int planner_vma_skip(const struct planner_dump *dump, struct vm_area_struct *vma, u32 flags)
{
	if (flags & PAGEHASH_VMA_HUGETLB)
		return PAGEHASH_SKIP_HUGETLB;
	if (flags & (PAGEHASH_VMA_PFNMAP | PAGEHASH_VMA_IO))
		return PAGEHASH_SKIP_PFNMAP;
	if (vma->vm_file && file_inode(vma->vm_file)->i_sb->s_magic == SECRETMEM_MAGIC)
		return PAGEHASH_SKIP_SECRET;
	if (dump->flags & PAGEHASH_START_COMPATIBLE && flags & PAGEHASH_VMA_INCOMPATIBLE)
		return PAGEHASH_SKIP_REQUEST;
	if (dump->flags & PAGEHASH_START_ADVISED && !(flags & PAGEHASH_VMA_ADVISED))
		return PAGEHASH_SKIP_REQUEST;
	return -1;
}

static void planner_skip(struct planner_dump *dump, unsigned int reason, u64 n_pages)
{
	dump->sum.skipped[reason] += n_pages;
}

/* Adds an entry; there are at most as many as a page table has. */
static void planner_add(struct planner_dump *dump, u64 address, struct page *page, u32 flags,
			bool is_shared)
{
	struct planner_entry *entry = &dump->entries[dump->n_entries++];

	if (dump->flags & PAGEHASH_START_NO_HASH && !(flags & PAGEHASH_PAGE_NO_HASH))
		flags |= PAGEHASH_PAGE_NOT_HASHED;
	entry->address = address;
	entry->page = page;
	entry->flags = flags;
	entry->is_shared = is_shared;
}

/* PAGEHASH_PAGE_* that a page itself shows. Its entry's page-table lock is held. */
static u32 planner_page_flags(struct page *page)
{
	struct folio *folio = page_folio(page);
	u32 flags = 0;

	if (folio_test_anon(folio)) {
		flags |= PAGEHASH_PAGE_ANON;
		if (folio_test_ksm(folio))
			flags |= PAGEHASH_PAGE_KSM;
	} else if (folio_test_swapbacked(folio)) {
		flags |= PAGEHASH_PAGE_SHMEM;
	} else {
		flags |= PAGEHASH_PAGE_FILE;
	}
	if (folio_test_large(folio)) {
		flags |= PAGEHASH_PAGE_COMPOUND;
		/* Other large pages are a driver's, which belong to no mapping of a file. */
		if (folio_test_anon(folio) || folio->mapping)
			flags |= PAGEHASH_PAGE_THP;
	}
	if (folio_test_swapcache(folio))
		flags |= PAGEHASH_PAGE_SWAPCACHE;
	if (folio_test_mlocked(folio) || folio_test_unevictable(folio))
		flags |= PAGEHASH_PAGE_LOCKED;
	if (folio_test_dirty(folio))
		flags |= PAGEHASH_PAGE_DIRTY;
	return flags;
}

/* Adds a page that an entry maps, with the bits of that entry. Its page-table lock is held. */
static void planner_add_page(struct planner_dump *dump, u64 address, struct page *page, u32 bits)
{
	u32 flags = planner_page_flags(page) | bits;
	int n_mappings = compat_page_mapcount(page);

	if (is_zone_device_page(page)) {
		planner_skip(dump, PAGEHASH_SKIP_DEVICE, 1);
		return;
	}
	if (dump->flags & PAGEHASH_START_ANON && !(flags & PAGEHASH_PAGE_ANON)) {
		planner_skip(dump, PAGEHASH_SKIP_FILE, 1);
		return;
	}
	if (n_mappings == 1)
		flags |= PAGEHASH_PAGE_EXCLUSIVE;
	if (!try_get_page(page)) {
		/* 2^31 references: somebody is trying to overflow the counter. */
		planner_add(dump, address, NULL, flags | PAGEHASH_PAGE_UNREADABLE, false);
		return;
	}
	planner_add(dump, address, page, flags, n_mappings > 1);
}

static void planner_add_zero_page(struct planner_dump *dump, u64 address, struct page *page,
				  u32 bits)
{
	planner_add(dump, address, page, bits | PAGEHASH_PAGE_ZERO_PAGE, false);
}

/* Adds a page that is not mapped now; @entry is what stands in its place. */
static void planner_add_absent(struct planner_dump *dump, u64 address, swp_entry_t entry)
{
	u32 flags;

	if (!non_swap_entry(entry)) {
		/* Only anonymous memory leaves a swap entry in a page table. */
		flags = PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_SWAPPED;
	} else if (is_migration_entry(entry)) {
		/* Under the page-table lock the entry holds its page in place. */
		flags = planner_page_flags(pfn_to_page(swp_offset_pfn(entry))) & PLANNER_KINDS;
		flags |= PAGEHASH_PAGE_MIGRATION;
	} else if (is_hwpoison_entry(entry)) {
		flags = PAGEHASH_PAGE_UNREADABLE;
	} else {
		planner_skip(dump, is_device_private_entry(entry) || is_device_exclusive_entry(entry) ?
			     PAGEHASH_SKIP_DEVICE : PAGEHASH_SKIP_MARKER, 1);
		return;
	}
	if (dump->flags & PAGEHASH_START_ANON &&
	    flags & (PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM)) {
		planner_skip(dump, PAGEHASH_SKIP_FILE, 1);
		return;
	}
	planner_add(dump, address, NULL, flags, false);
}

static void planner_add_pte(struct planner_dump *dump, u64 address, pte_t pte)
{
	u32 bits = 0;

	if (pte_none(pte))
		return;
	if (!pte_present(pte)) {
		planner_add_absent(dump, address, pte_to_swp_entry(pte));
		return;
	}
	if (pte_young(pte))
		bits |= PAGEHASH_PAGE_YOUNG;
	if (pte_dirty(pte))
		bits |= PAGEHASH_PAGE_DIRTY;
	if (pte_write(pte))
		bits |= PAGEHASH_PAGE_WRITABLE;
	if (is_zero_pfn(pte_pfn(pte)))
		planner_add_zero_page(dump, address, pfn_to_page(pte_pfn(pte)), bits);
	else if (pte_devmap(pte))
		planner_skip(dump, PAGEHASH_SKIP_DEVICE, 1);
	else if (pte_special(pte) || !pfn_valid(pte_pfn(pte)))
		planner_skip(dump, PAGEHASH_SKIP_SPECIAL, 1);
	else
		planner_add_page(dump, address, pte_page(pte), bits);
}

/*
 * Collects the entries of a huge page or of what stands in its place, if it is still there: false
 * where it is not. Takes the page-table lock. The mmap lock is held.
 */
static bool planner_walk_huge(struct planner_dump *dump, struct vm_area_struct *vma, pmd_t *pmdp,
			      unsigned long address, unsigned long end)
{
	spinlock_t *ptl = pmd_lock(vma->vm_mm, pmdp);
	pmd_t pmd = READ_ONCE(*pmdp);
	bool is_huge = true;
	struct page *page;
	u32 bits = 0;

	if (is_pmd_migration_entry(pmd)) {
		for (; address < end; address += PAGE_SIZE)
			planner_add_absent(dump, address, pmd_to_swp_entry(pmd));
		goto unlock;
	}
	if (pmd_devmap(pmd)) {
		planner_skip(dump, PAGEHASH_SKIP_DEVICE, (end - address) >> PAGE_SHIFT);
		goto unlock;
	}
	if (!pmd_trans_huge(pmd)) {
		is_huge = false;
		goto unlock;
	}
	if (pmd_young(pmd))
		bits |= PAGEHASH_PAGE_YOUNG;
	if (pmd_dirty(pmd))
		bits |= PAGEHASH_PAGE_DIRTY;
	if (pmd_write(pmd))
		bits |= PAGEHASH_PAGE_WRITABLE;
	page = pmd_page(pmd);
	if (!folio_test_anon(page_folio(page)) && !page_folio(page)->mapping) {
		/* The huge zero page, whose own number is not exported: it belongs to nobody. */
		bits |= PAGEHASH_PAGE_THP | PAGEHASH_PAGE_COMPOUND;
		for (; address < end; address += PAGE_SIZE)
			planner_add_zero_page(dump, address,
					      page + ((address & ~PMD_MASK) >> PAGE_SHIFT), bits);
		goto unlock;
	}
	for (; address < end; address += PAGE_SIZE)
		planner_add_page(dump, address, page + ((address & ~PMD_MASK) >> PAGE_SHIFT), bits);
unlock:
	spin_unlock(ptl);
	return is_huge;
}

/*
 * Collects the entries of a page table, if it is still the one: false where it is not. RCU keeps
 * the table from being freed until its lock is held (what pte_offset_map_lock() does, which is not
 * exported from 6.5 on). The mmap lock is held.
 */
static bool planner_walk_ptes(struct planner_dump *dump, struct vm_area_struct *vma, pmd_t *pmdp,
			      pmd_t pmd, unsigned long address, unsigned long end)
{
	bool is_same;
	spinlock_t *ptl;
	pte_t *ptep;

	rcu_read_lock();
	ptl = pte_lockptr(vma->vm_mm, &pmd);
	ptep = pte_offset_kernel(&pmd, address);
	spin_lock(ptl);
	is_same = pmd_same(pmd, READ_ONCE(*pmdp));
	if (is_same)
		for (; address < end; address += PAGE_SIZE, ptep++)
			planner_add_pte(dump, address, READ_ONCE(*ptep));
	spin_unlock(ptl);
	rcu_read_unlock();
	return is_same;
}

/* Collects the entries below one PMD; true where there was anything. The mmap lock is held. */
static bool planner_walk_pmd(struct planner_dump *dump, struct vm_area_struct *vma, pmd_t *pmdp,
			     unsigned long address, unsigned long end)
{
	int i;

	for (i = 0; i < PLANNER_TRIES; i++) {
		pmd_t pmd = READ_ONCE(*pmdp);

		if (pmd_none(pmd))
			return false;
		if (!pmd_present(pmd) || pmd_trans_huge(pmd) || pmd_devmap(pmd)) {
			if (planner_walk_huge(dump, vma, pmdp, address, end))
				return true;
		} else if (pmd_bad(pmd)) {
			break;
		} else if (planner_walk_ptes(dump, vma, pmdp, pmd, address, end)) {
			return true;
		}
		cpu_relax();
	}
	planner_skip(dump, PAGEHASH_SKIP_BUSY, (end - address) >> PAGE_SHIFT);
	return true;
}

/*
 * Looks at what lies at dump->pos in a mapping and moves on: past one page table, or past a hole of
 * up to what one entry of a higher table spans. True where a page table was walked. The mmap lock
 * is held, so upper tables stay.
 */
static bool planner_walk_vma(struct planner_dump *dump, struct vm_area_struct *vma,
			     unsigned long end)
{
	unsigned long address = dump->pos;
	pgd_t *pgdp;
	p4d_t *p4dp;
	pud_t *pudp;

	pgdp = pgd_offset(vma->vm_mm, address);
	if (pgd_none(READ_ONCE(*pgdp))) {
		dump->pos = pgd_addr_end(address, end);
		return false;
	}
	p4dp = p4d_offset(pgdp, address);
	if (p4d_none(READ_ONCE(*p4dp))) {
		dump->pos = p4d_addr_end(address, end);
		return false;
	}
	pudp = pud_offset(p4dp, address);
	if (pud_none(READ_ONCE(*pudp))) {
		dump->pos = pud_addr_end(address, end);
		return false;
	}
	if (pud_bad(READ_ONCE(*pudp))) {
		/* A huge page of 1 GiB that is not hugetlbfs's: device memory. */
		dump->pos = pud_addr_end(address, end);
		planner_skip(dump, PAGEHASH_SKIP_DEVICE, (dump->pos - address) >> PAGE_SHIFT);
		return false;
	}
	dump->pos = pmd_addr_end(address, end);
	return planner_walk_pmd(dump, vma, pmd_offset(pudp, address), address, dump->pos);
}

/* Goes on from dump->pos until a page table has been walked. The mmap lock is held. */
static void planner_walk_locked(struct planner_dump *dump)
{
	const size_t room = (PLANNER_OUT_SLOTS - PTRS_PER_PTE - PLANNER_VMA_SLOTS) *
			    sizeof(union planner_slot);
	int i;

	for (i = 0; i < PLANNER_LOOKS && dump->out_bytes <= room; i++) {
		struct vm_area_struct *vma = find_vma(dump->mm, dump->pos);
		unsigned long end;
		u32 flags;
		int skip;

		if (!vma || vma->vm_start >= dump->end) {
			dump->pos = dump->end;
			return;
		}
		dump->pos = max(dump->pos, vma->vm_start);
		end = min(dump->end, vma->vm_end);
		flags = planner_vma_flags(vma);
		planner_list_vma(dump, vma, flags);
		skip = planner_vma_skip(dump, vma, flags);
		if (skip >= 0) {
			planner_skip(dump, skip, (end - dump->pos) >> PAGE_SHIFT);
			dump->pos = end;
		} else if (planner_walk_vma(dump, vma, end)) {
			return;
		}
		if (dump->pos >= dump->end)
			return;
	}
}

/**
 * planner_walk_step() - list some mappings, or collect the entries of one page table
 * @dump:	a dump that is WALKING, with an empty output buffer and no entries; dump->lock is
 *		held
 *
 * Moves dump->pos; at dump->end the walk is over. Takes the target's mmap lock for reading and
 * drops it. A reference to the target's memory is held meanwhile, so that it cannot be torn down.
 *
 * Context: Process context. May sleep.
 * Return: 0; -ESRCH when the address space is gone; -EINTR when a fatal signal came.
 */
int planner_walk_step(struct planner_dump *dump)
{
	u64 start, held;
	int ret;

	if (!mmget_not_zero(dump->mm))
		return -ESRCH;
	ret = mmap_read_lock_killable(dump->mm);
	if (ret)
		goto put_mm;
	start = ktime_get_ns();
	planner_walk_locked(dump);
	held = ktime_get_ns() - start;
	mmap_read_unlock(dump->mm);

	dump->sum.n_locks++;
	dump->sum.lock_total_ns += held;
	dump->sum.lock_max_ns = max_t(u64, dump->sum.lock_max_ns, held);
put_mm:
	mmput(dump->mm);
	return ret;
}
