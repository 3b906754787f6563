/* SPDX-License-Identifier: GPL-2.0 */
/* Taking and reading dumps, processes to be dumped, and what /proc says of them. */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <planner/pagehash.h>

#define DEVICE		"/dev/ksm_planner"
#define PAGE		4096UL
#define HUGE		(2UL << 20)

/* Key of most tests: 00 01 .. 0f, as in docs/page-hash.md. */
extern const uint8_t test_key[16];

/* A dump that was read to its end and found well formed. */
struct dump {
	uint8_t *bytes;
	size_t n_bytes;
	const struct pagehash_header *header;
	const struct pagehash_trailer *trailer;
	struct pagehash_page *pages;
	size_t n_pages;
	/* Whose VMA each page is. */
	const struct pagehash_vma **vma_of;
};

/* Fills in a request for all of a process. */
void start_of(struct pagehash_start *start, pid_t pid);
/* A new file with a dump begun, or -errno. */
int dump_open(const struct pagehash_start *start);
/* Reads a file to its end in pieces of `piece` bytes; -errno or 0. The buffer is malloc'ed. */
int read_all(int fd, size_t piece, uint8_t **bytes, size_t *n_bytes);
/* Checks the form of a dump and indexes it; NULL or what is wrong with it. */
const char *dump_parse(uint8_t *bytes, size_t n_bytes, struct dump *dump);
/* Takes a dump of a process; stops the test when that is not possible or it is malformed. */
void dump_take(struct dump *dump, pid_t pid, uint32_t flags);
void dump_free(struct dump *dump);
/* The page at an address, NULL where there is none. */
const struct pagehash_page *dump_page(const struct dump *dump, uint64_t address);
/* The VMA slot with an address (the last one), NULL where there is none. */
const struct pagehash_vma *dump_vma(const struct dump *dump, uint64_t address);
/* Its name, in a static buffer. */
const char *vma_name(const struct pagehash_vma *vma);

/* A process that does `work(shared)` and then waits; returns when it waits. */
struct target {
	pid_t pid;
	int to, from;
	uint64_t *shared;	/* one page, seen by both */
};

void target_start(struct target *target, void (*work)(uint64_t *shared));
/* In work: tells that it is ready and waits for target_go(). */
void target_wait(void);
/* Lets the process run on, until its next target_wait(). */
void target_go(struct target *target);
/* Lets it run without waiting for it. */
void target_release(struct target *target);
void target_kill(struct target *target);

/* Writes the content number `n` to a page. */
void fill(void *page, uint64_t n);
uint64_t hash_of(uint64_t n);

/* Private anonymous memory of small pages, aligned to 2 MiB. */
void *anon(size_t n_bytes);
/* The same for huge pages. */
void *anon_huge(size_t n_bytes);

/* A number in a file after `label` (NULL: at its start), -1 where there is none. */
long long number_in(const char *path, const char *label);
long long number_of(pid_t pid, const char *file, const char *label);
bool write_to(const char *path, const char *text);
/* Entries of /proc/PID/pagemap; how many there were. A pid must not be a new process's. */
size_t pagemap_read(pid_t pid, uint64_t address, uint64_t *entries, size_t n);
uint64_t pagemap_of(pid_t pid, uint64_t address);
uint64_t kpageflags(uint64_t pfn);
uint64_t kpagecount(uint64_t pfn);
bool has_kernel(int major, int minor);

#endif
