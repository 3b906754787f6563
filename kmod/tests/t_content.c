// SPDX-License-Identifier: GPL-2.0
/*
 * What a dump says of pages of every kind, against content that is known and hashed by the oracle,
 * and against /proc/PID/pagemap, /proc/kpageflags, /proc/kpagecount and /proc/PID/maps.
 *
 *	shared[]	address of
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "oracle.h"
#include "tap.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum {
	AT_ANON, AT_THP, AT_SPLIT, AT_HUGE_ZERO, AT_FILE, AT_SHMEM_FILE, AT_SHARED, AT_FORK,
	AT_KSM, AT_SWAP, AT_LOCKED, AT_SECRET, AT_HUGETLB, AT_POISON, AT_UNALIGNED, AT_HEAP,
	AT_STACK, AT_SPARSE, AT_READ_ONLY, CHILD,
};

/* The frame number in a pagemap entry. */
#define PFN	((1ULL << 55) - 1)

#define N_ANON	64
#define N_KSM	32
#define N_SWAP	64

static char *ksm[2];

static void *map_file(const char *path, uint64_t first, int n)
{
	int i, fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char page[PAGE], *at;
	volatile char sum = 0;

	need(fd >= 0);
	for (i = 0; i < n; i++) {
		fill(page, first + i);
		need(write(fd, page, PAGE) == (ssize_t)PAGE);
	}
	at = mmap(NULL, n * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	need(at != MAP_FAILED);
	for (i = 0; i < n; i++)
		sum += at[i * PAGE];
	close(fd);
	return at;
}

static void fill_all(char *at, uint64_t first, int n)
{
	int i;

	for (i = 0; i < n; i++)
		fill(at + i * PAGE, first + i);
}

/* Memory failure kills who lost the page, unless it has a handler. */
static void survive(int number)
{
	(void)number;
}

/*
 * Content numbers: AT_x * 10000 + page.
 *
 *	anonymous pages:  10 zeros, 11 never touched, 12 only read, 13 equal to 14
 */
static void work(uint64_t *shared)
{
	volatile char sum = 0;
	char *at, *heap;
	pid_t child;
	int i, fd;

	at = anon(N_ANON * PAGE);
	for (i = 0; i < N_ANON; i++)
		if (i != 11 && i != 12)
			fill(at + i * PAGE, AT_ANON * 10000 + (i == 13 ? 14 : i));
	memset(at + 10 * PAGE, 0, PAGE);
	sum += at[12 * PAGE];
	shared[AT_ANON] = (uintptr_t)at;

	at = anon_huge(HUGE);
	fill_all(at, AT_THP * 10000, 512);
	shared[AT_THP] = (uintptr_t)at;

	/* A huge page of which one page is gone is mapped page by page. */
	at = anon_huge(HUGE);
	fill_all(at, AT_SPLIT * 10000, 512);
	munmap(at + 100 * PAGE, PAGE);
	shared[AT_SPLIT] = (uintptr_t)at;

	at = anon_huge(HUGE);
	sum += at[0];
	shared[AT_HUGE_ZERO] = (uintptr_t)at;

	shared[AT_FILE] = (uintptr_t)map_file("/ram/a file with quite a long name, 45 bytes", AT_FILE * 10000,
					      16);
	shared[AT_SHMEM_FILE] = (uintptr_t)map_file("/tmp/shmem", AT_SHMEM_FILE * 10000, 16);

	at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fill_all(at, AT_SHARED * 10000, 8);
	shared[AT_SHARED] = (uintptr_t)at;

	for (i = 0; i < 2; i++) {
		ksm[i] = anon(N_KSM * PAGE);
		fill_all(ksm[i], AT_KSM * 10000, N_KSM);
		need(!madvise(ksm[i], N_KSM * PAGE, MADV_MERGEABLE));
	}
	shared[AT_KSM] = (uintptr_t)ksm[0];
	shared[AT_KSM + 32] = (uintptr_t)ksm[1];

	at = anon(N_SWAP * PAGE);
	fill_all(at, AT_SWAP * 10000, N_SWAP);
	need(!madvise(at, N_SWAP * PAGE, MADV_PAGEOUT));
	shared[AT_SWAP] = (uintptr_t)at;

	at = anon(8 * PAGE);
	need(!mlock(at, 8 * PAGE));
	fill_all(at, AT_LOCKED * 10000, 8);
	shared[AT_LOCKED] = (uintptr_t)at;

	fd = syscall(447, 0);	/* memfd_secret */
	if (fd >= 0) {
		need(!ftruncate(fd, 8 * PAGE));
		at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		need(at != MAP_FAILED);
		fill_all(at, AT_SECRET * 10000, 8);
		shared[AT_SECRET] = (uintptr_t)at;
	}

	at = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1,
		  0);
	if (at != MAP_FAILED) {
		at[0] = 1;
		shared[AT_HUGETLB] = (uintptr_t)at;
	}

	at = anon(4 * PAGE);
	fill_all(at, AT_POISON * 10000, 4);
	signal(SIGBUS, survive);
	if (!madvise(at + PAGE, PAGE, MADV_HWPOISON))
		shared[AT_POISON] = (uintptr_t)at;

	heap = sbrk(0);
	heap = (char *)(((uintptr_t)heap + PAGE - 1) & ~(PAGE - 1));
	need(!brk(heap + 4 * PAGE));
	fill_all(heap, AT_HEAP * 10000, 4);
	shared[AT_HEAP] = (uintptr_t)heap;
	shared[AT_STACK] = (uintptr_t)__builtin_frame_address(0) & ~(PAGE - 1);

	/* 1 TiB with one page in its middle and one at its end. */
	at = mmap(NULL, 1UL << 40, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	need(at != MAP_FAILED);
	need(!madvise(at, 1UL << 40, MADV_NOHUGEPAGE));
	fill(at + (1UL << 39), AT_SPARSE * 10000);
	fill(at + (1UL << 40) - PAGE, AT_SPARSE * 10000 + 1);
	shared[AT_SPARSE] = (uintptr_t)at;

	at = anon(4 * PAGE);
	fill_all(at, AT_READ_ONLY * 10000, 4);
	need(!mprotect(at, 4 * PAGE, PROT_READ));
	shared[AT_READ_ONLY] = (uintptr_t)at;

	at = anon(8 * PAGE);
	fill_all(at, AT_FORK * 10000, 8);
	shared[AT_FORK] = (uintptr_t)at;
	child = fork();
	if (!child) {
		fill(at, AT_FORK * 10000 + 100);
		shared[CHILD + 32] = 1;
		for (;;)
			pause();
	}
	shared[CHILD] = child;
	while (!*(volatile uint64_t *)&shared[CHILD + 32])
		usleep(1000);
}

/* Checks hash and flags of pages [first, first + n) of a kind. */
static void check_pages(const struct dump *dump, const char *what, uint64_t at, int first, int n,
			uint64_t content, uint32_t mask, uint32_t flags)
{
	int i, n_hashes = 0, n_flags = 0;
	uint32_t seen = 0;

	for (i = first; i < first + n; i++) {
		const struct pagehash_page *page = dump_page(dump, at + i * PAGE);

		if (!page)
			continue;
		n_hashes += page->hash == hash_of(content + i);
		n_flags += (page->flags & mask) == flags;
		if ((page->flags & mask) != flags)
			seen = page->flags;
	}
	is(n_hashes, n, "%s: hashes equal the oracle's", what);
	is(n_flags, n, "%s: flags", what);
	if (n_flags != n)
		diag("%#x among %#x, for instance", seen, flags);
}

#define KIND (PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM | PAGEHASH_PAGE_ZERO | \
	      PAGEHASH_PAGE_ZERO_PAGE | PAGEHASH_PAGE_THP | PAGEHASH_PAGE_KSM | \
	      PAGEHASH_PAGE_NO_HASH | PAGEHASH_PAGE_COMPOUND | PAGEHASH_PAGE_EXCLUSIVE | \
	      PAGEHASH_PAGE_HUGETLB)

static void check_vectors(void)
{
	uint64_t page[512] = { 0 };
	const uint8_t key[16] = {
		0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
		0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10,
	};

	ok(oracle_page_hash(test_key, page) == 0xb57e91cf4cd4465dULL, "oracle: page of zeros");
	memset(page, 0xff, sizeof(page));
	ok(oracle_page_hash(test_key, page) == 0x979048ef1474a294ULL, "oracle: page of ones");
	ok(oracle_page_hash(key, page) == 0x60e619f284baaa83ULL, "oracle: another key");
	memset(page, 0, sizeof(page));
	((uint8_t *)page)[4095] = 1;
	ok(oracle_page_hash(key, page) == 0xa4cc22e9da67b930ULL, "oracle: last byte 1");
}

/* Every page of the process against what /proc says of it; and /proc has no page more. */
static void check_against_proc(const struct dump *dump, pid_t pid, const char *what,
			       bool is_ksm_told)
{
	static const struct {
		int bit;
		uint32_t flag;
	} bits[] = {
		{ 12, PAGEHASH_PAGE_ANON }, { 21, PAGEHASH_PAGE_KSM }, { 22, PAGEHASH_PAGE_THP },
		{ 15, PAGEHASH_PAGE_COMPOUND }, { 16, PAGEHASH_PAGE_COMPOUND },
		{ 18, PAGEHASH_PAGE_LOCKED }, { 33, PAGEHASH_PAGE_LOCKED },
		{ 13, PAGEHASH_PAGE_SWAPCACHE }, { 24, PAGEHASH_PAGE_ZERO_PAGE },
	};
	uint32_t mask = PAGEHASH_PAGE_EXCLUSIVE | PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM;
	int n_bad = 0, n_ids = 0, n_missing = 0;
	uint64_t entries[512];
	size_t n_entries;
	char path[64], line[512];
	size_t i, j;
	FILE *maps;

	for (j = 0; j < sizeof(bits) / sizeof(*bits); j++)
		mask |= bits[j].flag;
	for (i = 0; i < dump->n_pages; i++) {
		const struct pagehash_page *page = &dump->pages[i];
		uint64_t entry = pagemap_of(pid, page->address), pfn = entry & PFN;
		uint64_t kpf, count;
		uint32_t flags = 0, now = page->flags & mask;

		if (!(entry >> 63)) {
			bool is_swap = entry >> 62 & 1;

			n_bad += !is_swap || !(page->flags & PAGEHASH_PAGE_NO_HASH);
			continue;
		}
		kpf = kpageflags(pfn);
		count = kpagecount(pfn);
		for (j = 0; j < sizeof(bits) / sizeof(*bits); j++)
			if (kpf >> bits[j].bit & 1)
				flags |= bits[j].flag;
		if (entry >> 61 & 1)
			flags |= kpf >> 14 & 1 ? PAGEHASH_PAGE_SHMEM : PAGEHASH_PAGE_FILE;
		/*
		 * 6.1 shows "unevictable" of a large page at its first one only; 6.12 does not call
		 * the huge zero page huge, and its KSM bit is set for all anonymous pages.
		 */
		if (!is_ksm_told)
			flags = (flags & ~PAGEHASH_PAGE_KSM) | (now & PAGEHASH_PAGE_KSM);
		if (kpf >> 16 & 1)
			flags |= now & PAGEHASH_PAGE_LOCKED;
		if (kpf >> 24 & 1) {
			flags |= now & PAGEHASH_PAGE_THP;
			if (now & PAGEHASH_PAGE_THP)
				flags |= PAGEHASH_PAGE_COMPOUND;
			flags &= ~(PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM);
			count = 0;
		}
		if (count == 1)
			flags |= PAGEHASH_PAGE_EXCLUSIVE;
		if (flags != now && n_bad++ < 5)
			diag("%#llx: dump %#x, /proc %#x (kpageflags %#llx, count %llu)",
			     (unsigned long long)page->address, now, flags,
			     (unsigned long long)kpf, (unsigned long long)count);
		if (!!page->frame_id != (count > 1) && n_ids++ < 5)
			diag("%#llx: frame id %#llx with count %llu", (unsigned long long)page->address,
			     (unsigned long long)page->frame_id, (unsigned long long)count);
	}
	is(n_bad, 0, "%s: flags of all %zu pages agree with /proc", what, dump->n_pages);
	is(n_ids, 0, "%s: frames mapped more than once, and no others, have an id", what);

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	need(maps);
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end, at;
		const struct pagehash_vma *vma;
		char rwxs[5], *name;

		need(sscanf(line, "%lx-%lx %4s", &start, &end, rwxs) == 3);
		if (strstr(line, "[vsyscall]"))
			continue;
		line[strcspn(line, "\n")] = 0;
		name = strlen(line) > 73 ? line + 73 : "";
		if (strstr(name, " (deleted)"))
			*strstr(name, " (deleted)") = 0;
		if (strrchr(name, '/'))
			name = strrchr(name, '/') + 1;
		vma = dump_vma(dump, start);
		if (!vma || vma->start != start || vma->end != end) {
			ok(false, "%s: mapping %s", what, line);
			continue;
		}
		ok(!strcmp(vma_name(vma), name) &&
		   !(vma->flags & PAGEHASH_VMA_READ) == (rwxs[0] == '-') &&
		   !(vma->flags & PAGEHASH_VMA_WRITE) == (rwxs[1] == '-') &&
		   !(vma->flags & PAGEHASH_VMA_EXEC) == (rwxs[2] == '-') &&
		   !(vma->flags & PAGEHASH_VMA_MAYSHARE) == (rwxs[3] == 'p') &&
		   !(vma->flags & PAGEHASH_VMA_HEAP) == !!strcmp(name, "[heap]") &&
		   !(vma->flags & PAGEHASH_VMA_STACK) == !!strcmp(name, "[stack]"),
		   "%s: mapping %lx %s '%s' is '%s' %#x", what, start, rwxs, name, vma_name(vma),
		   vma->flags);
		if (vma->flags & (PAGEHASH_VMA_PFNMAP | PAGEHASH_VMA_HUGETLB) ||
		    end - start > 1UL << 30 || !strncmp(name, "secretmem", 9))
			continue;
		for (at = start; at < end; at += n_entries * PAGE) {
			n_entries = (end - at) / PAGE < 512 ? (end - at) / PAGE : 512;
			need(pagemap_read(pid, at, entries, n_entries) == n_entries);
			for (i = 0; i < n_entries; i++)
				n_missing += entries[i] >> 62 && !dump_page(dump, at + i * PAGE);
		}
	}
	fclose(maps);
	is(n_missing, 0, "%s: no page that /proc knows is missing", what);
}

static void check_vma(const struct dump *dump, const char *what, uint64_t at, uint32_t mask,
		      uint32_t flags)
{
	const struct pagehash_vma *vma = dump_vma(dump, at);

	ok(vma && (vma->flags & mask) == flags, "%s: mapping has flags %#x among %#x", what, flags,
	   mask);
	if (vma)
		diag("flags %#x, name '%s'", vma->flags, vma_name(vma));
}

static void check_frames(const struct dump *parent, const struct dump *child, uint64_t *shared)
{
	const struct pagehash_page *a, *b;
	int i, n_same = 0, n_ksm = 0, n_pfn = 0;
	size_t j;

	ok(parent->header->session_id == child->header->session_id, "one session: ids compare");
	ok(parent->header->mm_id != child->header->mm_id, "two address spaces: two mm ids");
	for (i = 1; i < 8; i++) {
		a = dump_page(parent, shared[AT_FORK] + i * PAGE);
		b = dump_page(child, shared[AT_FORK] + i * PAGE);
		n_same += a && b && a->frame_id && a->frame_id == b->frame_id &&
			  a->hash == b->hash;
	}
	is(n_same, 7, "pages shared by a fork have one frame id in both dumps");
	a = dump_page(parent, shared[AT_FORK]);
	b = dump_page(child, shared[AT_FORK]);
	ok(a && b && !a->frame_id && !b->frame_id && a->hash != b->hash,
	   "the page that was written after the fork is mapped once in both");
	for (i = 0; i < N_KSM; i++) {
		a = dump_page(parent, shared[AT_KSM] + i * PAGE);
		b = dump_page(parent, shared[AT_KSM + 32] + i * PAGE);
		n_ksm += a && b && a->frame_id && a->frame_id == b->frame_id;
	}
	is(n_ksm, N_KSM, "merged pages have one frame id");
	for (j = 0; j < parent->n_pages; j++) {
		uint64_t entry = pagemap_of(shared[CHILD], parent->pages[j].address);

		n_pfn += parent->pages[j].frame_id == (entry & PFN) &&
			 parent->pages[j].frame_id;
	}
	is(n_pfn, 0, "no frame id is a frame number");
}

/* Frame ids are one to one with frames. */
static void check_one_to_one(const struct dump *dump, pid_t pid)
{
	uint64_t *ids = malloc(dump->n_pages * 8), *pfns = malloc(dump->n_pages * 8);
	size_t i, j, n_ids = 0, n_bad = 0;

	for (i = 0; i < dump->n_pages; i++) {
		if (!dump->pages[i].frame_id)
			continue;
		ids[n_ids] = dump->pages[i].frame_id;
		pfns[n_ids++] = pagemap_of(pid, dump->pages[i].address) & PFN;
	}
	for (i = 0; i < n_ids; i++)
		for (j = i + 1; j < n_ids; j++)
			n_bad += (ids[i] == ids[j]) != (pfns[i] == pfns[j]);
	ok(n_ids > 0 && !n_bad, "frame ids are one to one with frames (%zu ids, %zu wrong pairs)",
	   n_ids, n_bad);
	free(ids);
	free(pfns);
}

int main(void)
{
	const struct pagehash_page *page;
	struct dump dump, child, other;
	struct pagehash_start start;
	struct target target;
	uint64_t *shared;
	bool is_ksm_told;
	int i, n, fd;
	uint8_t *bytes;
	size_t n_bytes;

	check_vectors();
	write_to("/proc/sys/vm/nr_hugepages", "2");
	target_start(&target, work);
	shared = target.shared;

	/* Of a test before this one, KSM may still count pages of processes that are gone. */
	write_to("/sys/kernel/mm/ksm/run", "2");
	write_to("/sys/kernel/mm/ksm/pages_to_scan", "10000");
	write_to("/sys/kernel/mm/ksm/sleep_millisecs", "5");
	write_to("/sys/kernel/mm/ksm/run", "1");
	for (i = 0; i < 200 && number_in("/sys/kernel/mm/ksm/pages_sharing", NULL) < N_KSM; i++)
		usleep(50000);
	write_to("/sys/kernel/mm/ksm/run", "0");
	ok(number_in("/sys/kernel/mm/ksm/pages_sharing", NULL) >= N_KSM, "KSM has merged");

	dump_take(&dump, target.pid, 0);
	dump_take(&child, shared[CHILD], 0);
	ok(dump.trailer->status == PAGEHASH_STATUS_COMPLETE, "dump is complete");
	ok(dump.header->zero_hash == 0xb57e91cf4cd4465dULL, "zero hash is that of docs/page-hash.md");
	ok(dump.header->key_id == 0x0958525dU, "key id is that of docs/page-hash.md");

	check_pages(&dump, "anonymous", shared[AT_ANON], 0, 10, AT_ANON * 10000, KIND,
		    PAGEHASH_PAGE_ANON);
	check_pages(&dump, "anonymous", shared[AT_ANON], 14, N_ANON - 14, AT_ANON * 10000, KIND,
		    PAGEHASH_PAGE_ANON);
	page = dump_page(&dump, shared[AT_ANON] + 10 * PAGE);
	ok(page && (page->flags & KIND) == (PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_ZERO) &&
	   page->hash == dump.header->zero_hash, "zeros in a frame of their own");
	ok(!dump_page(&dump, shared[AT_ANON] + 11 * PAGE), "no record where nothing was touched");
	page = dump_page(&dump, shared[AT_ANON] + 12 * PAGE);
	ok(page && (page->flags & KIND) == (PAGEHASH_PAGE_ZERO_PAGE | PAGEHASH_PAGE_ZERO) &&
	   page->hash == dump.header->zero_hash && !page->frame_id, "the shared zero page");
	page = dump_page(&dump, shared[AT_ANON] + 13 * PAGE);
	ok(page && page->hash == hash_of(AT_ANON * 10000 + 14), "equal content, equal hash");
	check_vma(&dump, "anonymous", shared[AT_ANON],
		  PAGEHASH_VMA_ALL, PAGEHASH_VMA_READ | PAGEHASH_VMA_WRITE | PAGEHASH_VMA_NOHUGEPAGE);

	/* The target forked after it had made most of this memory. */
	check_pages(&dump, "huge", shared[AT_THP], 0, 512, AT_THP * 10000, KIND,
		    PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_THP | PAGEHASH_PAGE_COMPOUND);
	check_vma(&dump, "huge", shared[AT_THP], PAGEHASH_VMA_HUGEPAGE | PAGEHASH_VMA_NOHUGEPAGE,
		  PAGEHASH_VMA_HUGEPAGE);
	check_pages(&dump, "huge, mapped by pages", shared[AT_SPLIT], 0, 100, AT_SPLIT * 10000, KIND,
		    PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_THP | PAGEHASH_PAGE_COMPOUND);
	check_pages(&dump, "huge, mapped by pages", shared[AT_SPLIT], 101, 411, AT_SPLIT * 10000,
		    KIND, PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_THP | PAGEHASH_PAGE_COMPOUND);
	ok(!dump_page(&dump, shared[AT_SPLIT] + 100 * PAGE), "its unmapped page is not listed");
	for (i = n = 0; i < 512; i++) {
		page = dump_page(&dump, shared[AT_HUGE_ZERO] + i * PAGE);
		n += page && page->hash == dump.header->zero_hash && !page->frame_id &&
		     (page->flags & KIND) == (PAGEHASH_PAGE_ZERO_PAGE | PAGEHASH_PAGE_ZERO |
					      PAGEHASH_PAGE_THP | PAGEHASH_PAGE_COMPOUND);
	}
	is(n, 512, "the huge zero page");

	check_pages(&dump, "file", shared[AT_FILE], 0, 16, AT_FILE * 10000,
		    KIND & ~PAGEHASH_PAGE_EXCLUSIVE, PAGEHASH_PAGE_FILE);
	check_vma(&dump, "file", shared[AT_FILE], PAGEHASH_VMA_FILE | PAGEHASH_VMA_SHARED,
		  PAGEHASH_VMA_FILE);
	ok(!strcmp(vma_name(dump_vma(&dump, shared[AT_FILE])),
		   "a file with quite a long name, 45 bytes"), "file: name over several slots");
	check_pages(&dump, "file on tmpfs", shared[AT_SHMEM_FILE], 0, 16, AT_SHMEM_FILE * 10000,
		    KIND & ~PAGEHASH_PAGE_EXCLUSIVE, PAGEHASH_PAGE_SHMEM);
	check_pages(&dump, "shared memory", shared[AT_SHARED], 0, 8, AT_SHARED * 10000,
		    KIND & ~PAGEHASH_PAGE_EXCLUSIVE, PAGEHASH_PAGE_SHMEM);
	check_vma(&dump, "shared memory", shared[AT_SHARED],
		  PAGEHASH_VMA_SHARED | PAGEHASH_VMA_MAYSHARE,
		  PAGEHASH_VMA_SHARED | PAGEHASH_VMA_MAYSHARE);

	check_pages(&dump, "KSM", shared[AT_KSM], 0, N_KSM, AT_KSM * 10000, KIND,
		    PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_KSM);
	check_pages(&dump, "KSM, second copy", shared[AT_KSM + 32], 0, N_KSM, AT_KSM * 10000, KIND,
		    PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_KSM);
	check_vma(&dump, "KSM", shared[AT_KSM], PAGEHASH_VMA_ADVISED, PAGEHASH_VMA_ADVISED);

	for (i = n = 0; i < N_SWAP; i++) {
		page = dump_page(&dump, shared[AT_SWAP] + i * PAGE);
		n += page && page->flags == (PAGEHASH_PAGE_ANON | PAGEHASH_PAGE_SWAPPED) &&
		     !page->hash && !page->frame_id && page->node == PAGEHASH_NODE_UNKNOWN;
	}
	is(n, N_SWAP, "swapped pages are records without a hash");

	check_pages(&dump, "locked", shared[AT_LOCKED], 0, 8, AT_LOCKED * 10000,
		    PAGEHASH_PAGE_LOCKED, PAGEHASH_PAGE_LOCKED);
	check_vma(&dump, "locked", shared[AT_LOCKED], PAGEHASH_VMA_LOCKED, PAGEHASH_VMA_LOCKED);
	check_pages(&dump, "read-only", shared[AT_READ_ONLY], 0, 4, AT_READ_ONLY * 10000,
		    PAGEHASH_PAGE_WRITABLE | PAGEHASH_PAGE_DIRTY, PAGEHASH_PAGE_DIRTY);
	page = dump_page(&child, shared[AT_FORK]);
	ok(page && page->flags & PAGEHASH_PAGE_WRITABLE && page->flags & PAGEHASH_PAGE_YOUNG &&
	   page->flags & PAGEHASH_PAGE_DIRTY && page->flags & PAGEHASH_PAGE_EXCLUSIVE &&
	   page->hash == hash_of(AT_FORK * 10000 + 100),
	   "a page just written is writable, young, dirty and exclusive");

	if (shared[AT_SECRET]) {
		for (i = n = 0; i < 8; i++)
			n += !!dump_page(&dump, shared[AT_SECRET] + i * PAGE);
		is(n, 0, "memfd_secret is not read");
		is(dump.trailer->skipped[PAGEHASH_SKIP_SECRET], 8, "but counted");
	} else {
		ok(false, "memfd_secret can be tested (boot with secretmem.enable=1)");
	}
	if (shared[AT_HUGETLB]) {
		ok(!dump_page(&dump, shared[AT_HUGETLB]), "hugetlb is not listed");
		is(dump.trailer->skipped[PAGEHASH_SKIP_HUGETLB], 512, "but counted");
		check_vma(&dump, "hugetlb", shared[AT_HUGETLB], PAGEHASH_VMA_HUGETLB,
			  PAGEHASH_VMA_HUGETLB);
	} else {
		ok(false, "hugetlb can be tested");
	}
	ok(dump.trailer->skipped[PAGEHASH_SKIP_PFNMAP] > 0, "[vvar] is counted as PFNMAP");
	if (shared[AT_POISON]) {
		page = dump_page(&dump, shared[AT_POISON] + PAGE);
		ok(page && page->flags == PAGEHASH_PAGE_UNREADABLE && !page->hash,
		   "a page lost to memory failure is unreadable");
		page = dump_page(&dump, shared[AT_POISON] + 2 * PAGE);
		ok(page && page->hash == hash_of(AT_POISON * 10000 + 2), "its neighbour is not");
	} else {
		skip("memory failure", "the kernel has no MADV_HWPOISON");
	}
	page = dump_page(&dump, shared[AT_SPARSE] + (1ULL << 39));
	ok(page && page->hash == hash_of(AT_SPARSE * 10000), "a page in the middle of nothing");
	page = dump_page(&dump, shared[AT_SPARSE] + (1ULL << 40) - PAGE);
	ok(page && page->hash == hash_of(AT_SPARSE * 10000 + 1), "a page at the end of nothing");
	check_pages(&dump, "heap", shared[AT_HEAP], 0, 4, AT_HEAP * 10000, PAGEHASH_PAGE_ANON,
		    PAGEHASH_PAGE_ANON);
	check_vma(&dump, "heap", shared[AT_HEAP], PAGEHASH_VMA_HEAP, PAGEHASH_VMA_HEAP);
	check_vma(&dump, "stack", shared[AT_STACK], PAGEHASH_VMA_STACK, PAGEHASH_VMA_STACK);
	for (i = n = 0; i < (int)dump.n_pages; i++)
		n += dump.pages[i].node != 0 && !(dump.pages[i].flags & PAGEHASH_PAGE_NO_HASH);
	is(n, 0, "all frames are of node 0");

	check_frames(&dump, &child, shared);
	check_one_to_one(&child, shared[CHILD]);
	is_ksm_told = !(kpageflags(pagemap_of(target.pid, shared[AT_ANON]) & PFN) >> 21 & 1);
	diag("kpageflags tells KSM pages: %s", is_ksm_told ? "yes" : "no");
	check_against_proc(&dump, target.pid, "target", is_ksm_told);
	check_against_proc(&child, shared[CHILD], "its child", is_ksm_told);

	/* Requests. */
	dump_take(&other, target.pid, PAGEHASH_START_NO_HASH);
	for (i = n = 0; i < (int)other.n_pages; i++)
		n += !other.pages[i].hash && other.pages[i].flags & PAGEHASH_PAGE_NO_HASH;
	ok(other.n_pages == dump.n_pages && n == (int)other.n_pages && !other.trailer->n_hashed,
	   "NO_HASH: the same pages, no hashes");
	page = dump_page(&other, shared[AT_FORK] + PAGE);
	ok(page && page->flags & PAGEHASH_PAGE_NOT_HASHED &&
	   page->frame_id == dump_page(&dump, shared[AT_FORK] + PAGE)->frame_id,
	   "NO_HASH: flag and frame id");
	dump_free(&other);

	dump_take(&other, target.pid, PAGEHASH_START_ANON);
	for (i = n = 0; i < (int)other.n_pages; i++)
		n += !!(other.pages[i].flags & (PAGEHASH_PAGE_FILE | PAGEHASH_PAGE_SHMEM));
	is(n, 0, "ANON: no pages of files");
	is(other.n_pages + other.trailer->skipped[PAGEHASH_SKIP_FILE], dump.n_pages,
	   "ANON: those left out are counted");
	is(other.trailer->n_vmas, dump.trailer->n_vmas, "ANON: mappings are listed all the same");
	dump_free(&other);

	dump_take(&other, target.pid, PAGEHASH_START_COMPATIBLE);
	for (i = n = 0; i < (int)other.n_pages; i++)
		n += !!(other.vma_of[i]->flags & PAGEHASH_VMA_INCOMPATIBLE);
	is(n, 0, "COMPATIBLE: only pages of such mappings");
	ok(other.trailer->skipped[PAGEHASH_SKIP_REQUEST] > 0 && dump_page(&other, shared[AT_ANON]) &&
	   !dump_page(&other, shared[AT_SHARED]), "COMPATIBLE: shared memory is left out");
	dump_free(&other);

	dump_take(&other, target.pid, PAGEHASH_START_ADVISED);
	is(other.n_pages, 2 * N_KSM, "ADVISED: only pages of advised mappings");
	dump_free(&other);

	/* A range, and one dump after another over the same file. */
	start_of(&start, target.pid);
	start.start = shared[AT_ANON] + 20 * PAGE;
	start.end = shared[AT_ANON] + 30 * PAGE;
	fd = dump_open(&start);
	need(fd >= 0);
	need(!read_all(fd, 4096, &bytes, &n_bytes));
	need(!dump_parse(bytes, n_bytes, &other));
	ok(other.n_pages == 10 && other.trailer->n_vmas == 1 &&
	   dump_vma(&other, start.start)->start == start.start &&
	   dump_vma(&other, start.start)->end == start.end &&
	   other.header->start == start.start && other.header->end == start.end &&
	   other.pages[0].hash == hash_of(AT_ANON * 10000 + 20), "a range of pages");
	close(fd);
	dump_free(&other);

	/* Swap entries must not have been brought in by any of these dumps. */
	for (i = n = 0; i < N_SWAP; i++)
		n += pagemap_of(target.pid, shared[AT_SWAP] + i * PAGE) >> 62 == 1;
	is(n, N_SWAP, "swapped pages are still swapped");

	kill(shared[CHILD], SIGKILL);
	target_kill(&target);
	return tap_done();
}
