// SPDX-License-Identifier: GPL-2.0
/*
 * A guest, as small as can be: 64 KiB of firmware for QEMU's "pc" that fills a part of its RAM and then
 * goes on checking it and writing to it. It tells by port 0xe9 how it is: R ready, . a round without
 * fault, X a page that is not what it was.
 *
 * All guests have the same pages, but for every 16th, which each writes to in each round.
 */
typedef unsigned int u32;
typedef unsigned char u8;

#define DATA	((u32 *)(4U << 20))
#define N_PAGES	1024
#define WORDS	1024

/* Real mode at reset; then protected mode with flat segments. */
asm(".code16\n"
    ".section .start, \"ax\"\n"
    "	.globl start, gdtr\n"
    "start:\n"
    "	cli\n"
    "	lgdtl %cs:gdtr_offset\n"
    "	movl %cr0, %eax\n"
    "	orl $1, %eax\n"
    "	movl %eax, %cr0\n"
    "	ljmpl $8, $flat\n"
    ".code32\n"
    "flat:\n"
    "	movw $16, %ax\n"
    "	movw %ax, %ds\n"
    "	movw %ax, %es\n"
    "	movw %ax, %ss\n"
    "	movl $0x80000, %esp\n"
    "	jmp run\n"
    "	.balign 8\n"
    "gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
    "gdtr:	.word 23\n"
    "	.long gdt\n"
    ".section .reset, \"ax\"\n"
    ".code16\n"
    "	ljmpw $0xf000, $start_offset\n"
    "	.balign 16\n"
    ".code32\n"
    ".text\n");

static void tell(u8 what)
{
	asm volatile("outb %0, %1" : : "a"(what), "d"((unsigned short)0xe9));
}

static u32 word(u32 page, u32 i, u32 round)
{
	return page * 2654435761U + i + (page % 16 ? 0 : round * 0x10001);
}

static void fill(u32 page, u32 round)
{
	u32 *at = DATA + page * WORDS, i;

	for (i = 0; i < WORDS; i++)
		at[i] = word(page, i, round);
}

__attribute__((noreturn, used)) void run(void)
{
	u32 page, i, round = 0;

	for (page = 0; page < N_PAGES; page++)
		fill(page, 0);
	tell('R');
	for (;;) {
		u32 n_bad = 0;

		for (page = 0; page < N_PAGES; page++)
			for (i = 0; i < WORDS; i += 8)
				n_bad += ((volatile u32 *)DATA)[page * WORDS + i] != word(page, i, round);
		tell(n_bad ? 'X' : '.');
		round++;
		for (page = 0; page < N_PAGES; page += 16)
			fill(page, round);
	}
}
