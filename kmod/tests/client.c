// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "oracle.h"
#include "tap.h"

const uint8_t test_key[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

void start_of(struct pagehash_start *start, pid_t pid)
{
	*start = (struct pagehash_start){
		.size = sizeof(*start),
		.pid = pid,
		.end = PAGEHASH_END_OF_MEMORY,
	};
	memcpy(start->key, test_key, 16);
}

int dump_open(const struct pagehash_start *start)
{
	int fd = open(DEVICE, O_RDONLY | O_CLOEXEC);
	int error;

	if (fd < 0)
		return -errno;
	if (!ioctl(fd, PAGEHASH_IOC_START, start))
		return fd;
	error = errno;
	close(fd);
	return -error;
}

int read_all(int fd, size_t piece, uint8_t **bytes, size_t *n_bytes)
{
	size_t room = 1 << 20;
	ssize_t n;

	*bytes = malloc(room);
	for (*n_bytes = 0;; *n_bytes += n) {
		if (*n_bytes + piece > room) {
			room = 2 * room + piece;
			*bytes = realloc(*bytes, room);
		}
		n = read(fd, *bytes + *n_bytes, piece);
		if (n < 0 && errno == EINTR) {
			n = 0;
			continue;
		}
		if (n <= 0)
			return n ? -errno : 0;
	}
}

const char *dump_parse(uint8_t *bytes, size_t n_bytes, struct dump *dump)
{
	const struct pagehash_vma *vma = NULL;
	uint64_t n_vmas = 0, n_names = 0, n_hashed = 0, last = 0;
	size_t at, end, n_left = 0;
	uint32_t i;

	memset(dump, 0, sizeof(*dump));
	dump->bytes = bytes;
	dump->n_bytes = n_bytes;
	dump->header = (void *)bytes;
	if (n_bytes < PAGEHASH_HEADER_SIZE + PAGEHASH_TRAILER_SIZE || n_bytes % 32)
		return "length";
	if (dump->header->magic != PAGEHASH_MAGIC || dump->header->abi_major != 1 ||
	    dump->header->abi_minor != 0 || dump->header->header_size != PAGEHASH_HEADER_SIZE ||
	    dump->header->record_size != 32 || dump->header->page_bytes != PAGE ||
	    dump->header->trailer_size != PAGEHASH_TRAILER_SIZE ||
	    dump->header->algorithm != PAGEHASH_ALGORITHM_XXH64_SIPHASH24 ||
	    dump->header->hash_bits != 64)
		return "header";
	for (i = 0; i < 4; i++)
		if (dump->header->reserved[i])
			return "reserved field of the header";
	end = n_bytes - PAGEHASH_TRAILER_SIZE;
	dump->trailer = (void *)(bytes + end);
	if (dump->trailer->magic != PAGEHASH_TRAILER_MAGIC ||
	    dump->trailer->type != PAGEHASH_TYPE_TRAILER || dump->trailer->reserved0)
		return "trailer";
	for (i = PAGEHASH_SKIP_N; i < PAGEHASH_SKIP_MAX; i++)
		if (dump->trailer->skipped[i])
			return "unused skip reason";
	if (dump->trailer->start_ns != dump->header->start_ns ||
	    dump->trailer->end_ns < dump->header->start_ns)
		return "times";
	if (dump->trailer->walked_to < dump->header->start ||
	    dump->trailer->walked_to > dump->header->end)
		return "walked_to";
	if (dump->trailer->status == PAGEHASH_STATUS_COMPLETE &&
	    dump->trailer->walked_to != dump->header->end)
		return "complete, but not to the end";
	dump->pages = malloc((end / 32 + 1) * sizeof(*dump->pages));
	dump->vma_of = malloc((end / 32 + 1) * sizeof(*dump->vma_of));
	for (at = PAGEHASH_HEADER_SIZE; at < end; at += 32) {
		const struct pagehash_page *page = (void *)(bytes + at);
		const struct pagehash_vma *next = (void *)page;
		const struct pagehash_name *name = (void *)page;

		if (n_left && page->type != PAGEHASH_TYPE_NAME)
			return "name cut short";
		switch (page->type) {
		case PAGEHASH_TYPE_PAGE:
			if (!vma || page->address < vma->start || page->address >= vma->end)
				return "page outside of its mapping";
			if (dump->n_pages && page->address <= last)
				return "page addresses do not ascend";
			if (page->address % PAGE || page->flags & ~PAGEHASH_PAGE_ALL)
				return "page";
			if (page->flags & PAGEHASH_PAGE_NO_HASH && page->hash)
				return "hash of a page without one";
			if (page->flags & PAGEHASH_PAGE_ZERO && page->hash != dump->header->zero_hash)
				return "zero page with another hash";
			if (page->frame_id && page->flags & (PAGEHASH_PAGE_EXCLUSIVE |
							     PAGEHASH_PAGE_ZERO_PAGE))
				return "frame id of a page mapped once";
			n_hashed += !(page->flags & PAGEHASH_PAGE_NO_HASH);
			last = page->address;
			dump->vma_of[dump->n_pages] = vma;
			dump->pages[dump->n_pages++] = *page;
			break;
		case PAGEHASH_TYPE_VMA:
			if (next->start >= next->end || next->flags & ~PAGEHASH_VMA_ALL ||
			    next->reserved || next->start % PAGE || next->end % PAGE)
				return "mapping";
			if ((vma && next->start <= vma->start) || (dump->n_pages && next->start <= last))
				return "mappings do not ascend";
			if (next->start < dump->header->start || next->end > dump->header->end)
				return "mapping outside of the range";
			vma = next;
			n_left = vma->n_names;
			n_vmas++;
			break;
		case PAGEHASH_TYPE_NAME:
			if (!n_left || name->index != vma->n_names - n_left ||
			    (name->length + 23) / 24 != vma->n_names)
				return "name";
			n_left--;
			n_names++;
			break;
		default:
			return "unknown type";
		}
	}
	if (n_left || n_vmas != dump->trailer->n_vmas || n_names != dump->trailer->n_names ||
	    dump->n_pages != dump->trailer->n_pages || n_hashed != dump->trailer->n_hashed)
		return "counts of the trailer";
	return NULL;
}

void dump_take(struct dump *dump, pid_t pid, uint32_t flags)
{
	struct pagehash_start start;
	const char *wrong;
	uint8_t *bytes;
	size_t n_bytes;
	int fd;

	start_of(&start, pid);
	start.flags = flags;
	fd = dump_open(&start);
	need(fd >= 0);
	need(!read_all(fd, 1 << 18, &bytes, &n_bytes));
	close(fd);
	wrong = dump_parse(bytes, n_bytes, dump);
	if (wrong) {
		ok(false, "a dump is well formed: %s", wrong);
		exit(1);
	}
}

void dump_free(struct dump *dump)
{
	free(dump->bytes);
	free(dump->pages);
	free(dump->vma_of);
	memset(dump, 0, sizeof(*dump));
}

const struct pagehash_page *dump_page(const struct dump *dump, uint64_t address)
{
	size_t low = 0, high = dump->n_pages;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (dump->pages[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < dump->n_pages && dump->pages[low].address == address)
		return &dump->pages[low];
	return NULL;
}

const struct pagehash_vma *dump_vma(const struct dump *dump, uint64_t address)
{
	const struct pagehash_vma *found = NULL;
	size_t at;

	for (at = PAGEHASH_HEADER_SIZE; at < dump->n_bytes - PAGEHASH_TRAILER_SIZE; at += 32) {
		const struct pagehash_vma *vma = (void *)(dump->bytes + at);

		if (vma->type == PAGEHASH_TYPE_VMA && vma->start <= address && address < vma->end)
			found = vma;
	}
	return found;
}

const char *vma_name(const struct pagehash_vma *vma)
{
	static char text[12 * 24 + 1];
	const struct pagehash_name *name = (void *)(vma + 1);
	int i;

	memset(text, 0, sizeof(text));
	for (i = 0; i < vma->n_names && i < 12; i++)
		memcpy(text + 24 * i, name[i].text, 24);
	if (vma->n_names && strlen(text) != name->length)
		return "(length differs)";
	return text;
}

static int wait_from, wait_to;

void target_start(struct target *target, void (*work)(uint64_t *shared))
{
	int to[2], from[2], status;
	char byte;

	target->shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(target->shared != MAP_FAILED);
	need(!pipe(to) && !pipe(from));
	fflush(stdout);
	target->pid = fork();
	need(target->pid >= 0);
	if (!target->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		wait_from = to[0];
		wait_to = from[1];
		work(target->shared);
		target_wait();
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	target->to = to[1];
	target->from = from[0];
	if (read(target->from, &byte, 1) != 1) {
		waitpid(target->pid, &status, 0);
		diag("the target ended with status %#x", status);
		need(!"target is ready");
	}
}

void target_wait(void)
{
	char byte = 0;

	if (write(wait_to, &byte, 1) != 1 || read(wait_from, &byte, 1) != 1)
		_exit(1);
}

void target_release(struct target *target)
{
	char byte = 0;

	need(write(target->to, &byte, 1) == 1);
}

void target_go(struct target *target)
{
	char byte;

	target_release(target);
	need(read(target->from, &byte, 1) == 1);
}

void target_kill(struct target *target)
{
	kill(target->pid, SIGKILL);
	waitpid(target->pid, NULL, 0);
	close(target->to);
	close(target->from);
	munmap(target->shared, PAGE);
}

void fill(void *page, uint64_t n)
{
	uint64_t *words = page;
	int i;

	for (i = 0; i < 512; i++)
		words[i] = n * 0x9e3779b97f4a7c15ULL + i;
}

uint64_t hash_of(uint64_t n)
{
	static uint64_t page[512];

	fill(page, n);
	return oracle_page_hash(test_key, page);
}

static void *anon_aligned(size_t n_bytes, int advice)
{
	char *at = mmap(NULL, n_bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			-1, 0);
	char *aligned = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));

	need(at != MAP_FAILED);
	if (aligned > at)
		munmap(at, aligned - at);
	munmap(aligned + n_bytes, at + HUGE - aligned);
	need(!madvise(aligned, n_bytes, advice));
	return aligned;
}

void *anon(size_t n_bytes)
{
	return anon_aligned(n_bytes, MADV_NOHUGEPAGE);
}

void *anon_huge(size_t n_bytes)
{
	return anon_aligned(n_bytes, MADV_HUGEPAGE);
}

long long number_in(const char *path, const char *label)
{
	static char text[1 << 16];
	const char *at = text;
	int fd = open(path, O_RDONLY);
	ssize_t n;
	size_t length = 0;

	if (fd < 0)
		return -1;
	while ((n = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += n;
	close(fd);
	text[length] = 0;
	for (; label && at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
		if (!strncmp(at, label, strlen(label)))
			break;
	if (!at)
		return -1;
	return strtoll(at + (label ? strlen(label) : 0), NULL, 10);
}

long long number_of(pid_t pid, const char *file, const char *label)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return number_in(path, label);
}

bool write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool is_ok;

	if (fd < 0)
		return false;
	is_ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return is_ok;
}

size_t pagemap_read(pid_t pid, uint64_t address, uint64_t *entries, size_t n)
{
	static pid_t last;
	static int fd = -1;
	char path[64];
	ssize_t size;

	if (pid != last || fd < 0) {
		if (fd >= 0)
			close(fd);
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		last = pid;
	}
	size = pread(fd, entries, n * 8, address / PAGE * 8);
	return size < 0 ? 0 : size / 8;
}

uint64_t pagemap_of(pid_t pid, uint64_t address)
{
	uint64_t entry;

	return pagemap_read(pid, address, &entry, 1) == 1 ? entry : 0;
}

static uint64_t read_word(int *fd, const char *path, uint64_t index)
{
	uint64_t word;

	if (*fd < 0)
		*fd = open(path, O_RDONLY | O_CLOEXEC);
	return pread(*fd, &word, 8, index * 8) == 8 ? word : 0;
}

uint64_t kpageflags(uint64_t pfn)
{
	static int fd = -1;

	return read_word(&fd, "/proc/kpageflags", pfn);
}

uint64_t kpagecount(uint64_t pfn)
{
	static int fd = -1;

	return read_word(&fd, "/proc/kpagecount", pfn);
}

bool has_kernel(int major, int minor)
{
	struct utsname name;
	int a, b;

	uname(&name);
	return sscanf(name.release, "%d.%d", &a, &b) == 2 && (a > major || (a == major && b >= minor));
}
