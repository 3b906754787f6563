// SPDX-License-Identifier: GPL-2.0
/*
 * A container's process: `tenant FILE` has a page for each 32-bit number of the file, filled with it,
 * tells where, and waits.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096UL

int main(int argc, char **argv)
{
	static char text[40];
	struct stat status;
	uint32_t number;
	uint64_t *page;
	char *memory;
	size_t i, j;
	int fd;

	fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	if (fd < 0 || fstat(fd, &status))
		return 1;
	/* Room on both sides, so that it is a mapping of its own. */
	memory = mmap(NULL, status.st_size / 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise(memory, status.st_size / 4 * PAGE, MADV_NOHUGEPAGE))
		return 1;
	for (i = 0; i < status.st_size / 4; i++) {
		if (read(fd, &number, 4) != 4)
			return 1;
		page = (uint64_t *)(memory + i * PAGE);
		for (j = 0; j < PAGE / 8; j++)
			page[j] = number ? (uint64_t)number << 32 | j : 0;
	}
	if (write(1, text, snprintf(text, sizeof(text), "%p\n", (void *)memory)) < 0)
		return 1;
	for (;;)
		pause();
}
