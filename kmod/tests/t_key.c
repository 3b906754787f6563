// SPDX-License-Identifier: GPL-2.0
/*
 * The key is forgotten: when a dump is over it is nowhere in the machine's memory, which is searched
 * through /proc/kcore. While a dump is under way it is there: so the search does find keys.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client.h"
#include "tap.h"

#define BUFFER	(1 << 20)
/* User space holds keys under this mask only. */
#define MASK	0x5aa5c33cf00f9669ULL

static void work(uint64_t *shared)
{
	char *at = anon(4096 * PAGE);
	int i;

	for (i = 0; i < 4096; i++)
		fill(at + i * PAGE, i);
	shared[0] = (uintptr_t)at;
}

static uint64_t masked[2][2];

static void draw(uint64_t *words)
{
	int fd = open("/dev/urandom", O_RDONLY);

	need(fd >= 0 && read(fd, words, 16) == 16);
	close(fd);
}

/* Starts with a key that is in this process for the time of the call only. */
static void start_with(int fd, pid_t pid, const uint64_t *key)
{
	struct pagehash_start start;
	volatile uint64_t *words = (void *)start.key;
	int i;

	start_of(&start, pid);
	for (i = 0; i < 2; i++)
		words[i] = key[i] ^ MASK;
	need(!ioctl(fd, PAGEHASH_IOC_START, &start));
	explicit_bzero(&start, sizeof(start));
}

/*
 * Where in memory either half of a key is. Only what the kernel maps of RAM is searched: a segment
 * that starts within a machine's RAM, by its physical address.
 */
static int search(const uint64_t *key, uint64_t *n_searched)
{
	static uint64_t buffer[BUFFER / 8];
	int fd = open("/proc/kcore", O_RDONLY), n_found = 0, i;
	uint64_t a = key[0], b = key[1], at, end;
	Elf64_Phdr *segments;
	Elf64_Ehdr header;
	ssize_t n, j;

	need(fd >= 0 && read(fd, &header, sizeof(header)) == sizeof(header));
	segments = calloc(header.e_phnum, sizeof(*segments));
	need(pread(fd, segments, header.e_phnum * sizeof(*segments), header.e_phoff) > 0);
	*n_searched = 0;
	for (i = 0; i < header.e_phnum; i++) {
		/* The map of all memory; not vmalloc's, the kernel's text or the array of pages. */
		if (segments[i].p_type != PT_LOAD || segments[i].p_paddr == ~0ULL ||
		    segments[i].p_paddr >= 4ULL << 30 || segments[i].p_vaddr >= 0xffffffff80000000ULL)
			continue;
		end = segments[i].p_offset + segments[i].p_filesz;
		for (at = segments[i].p_offset; at < end; at += n) {
			n = pread(fd, buffer, end - at < BUFFER ? end - at : BUFFER, at);
			if (n <= 0)
				break;
			for (j = 0; j < n / 8; j++)
				if ((buffer[j] ^ MASK) == a || (buffer[j] ^ MASK) == b)
					n_found++;
			*n_searched += n;
		}
	}
	free(segments);
	explicit_bzero(buffer, sizeof(buffer));
	close(fd);
	return n_found;
}

int main(void)
{
	static char bytes[1 << 16];
	struct target target;
	uint64_t n_searched;
	uint8_t *whole;
	size_t n_whole;
	int fd, n;

	draw(masked[0]);
	draw(masked[1]);
	target_start(&target, work);
	fd = open(DEVICE, O_RDONLY);
	need(fd >= 0);
	start_with(fd, target.pid, masked[0]);
	need(read(fd, bytes, sizeof(bytes)) == sizeof(bytes));
	n = search(masked[0], &n_searched);
	ok(n_searched > 256ULL << 20, "%llu MiB of memory searched",
	   (unsigned long long)n_searched >> 20);
	ok(n > 0, "control: the key of a dump under way is found (%d)", n);

	/* Another key on the same file, read to the end; the file stays open. */
	start_with(fd, target.pid, masked[1]);
	need(!read_all(fd, 1 << 16, &whole, &n_whole));
	is(search(masked[1], &n_searched), 0, "the key of a dump that is over is nowhere");
	close(fd);
	target_kill(&target);
	return tap_done();
}
