// SPDX-License-Identifier: GPL-2.0
/*
 * Keys, page hash and frame ids: PAGEHASH_ALGORITHM_XXH64_SIPHASH24 (docs/page-hash.md).
 */
#include <linux/highmem.h>
#include <linux/random.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/xxhash.h>

#include "internal.h"

/**
 * struct planner_secret - what makes frame ids say nothing of frame numbers
 * @bytes:	random, drawn at load, never shown
 */
static struct planner_secret {
	u8 bytes[16];
} planner_secret;

/**
 * planner_hash_init() - draw the secret of this load of the module
 *
 * Context: Process context, before the device exists.
 */
void planner_hash_init(void)
{
	get_random_bytes(planner_secret.bytes, sizeof(planner_secret.bytes));
}

/**
 * planner_hash_exit() - forget the secret
 *
 * Context: Process context, after the device is gone.
 */
void planner_hash_exit(void)
{
	memzero_explicit(planner_secret.bytes, sizeof(planner_secret.bytes));
}

static u64 planner_hash_page(const struct planner_keys *keys, const void *page)
{
	return siphash_1u64(xxh64(page, PAGE_SIZE, keys->seed), &keys->site);
}

/**
 * planner_keys_set() - derive all that is needed from a site key
 * @keys:	filled in
 * @key:	16 bytes of site key
 *
 * Context: Any.
 */
void planner_keys_set(struct planner_keys *keys, const u8 *key)
{
	/* A label for each half of the frame key, then the secret. */
	u8 text[32] = "pagehash-v1-frm0";
	const void *zeros = page_address(ZERO_PAGE(0));

	/* Both halves are little-endian, as this machine is. */
	memcpy(keys->site.key, key, sizeof(keys->site.key));
	keys->seed = siphash("pagehash-v1-seed", 16, &keys->site);
	memcpy(text + 16, planner_secret.bytes, 16);
	keys->frame.key[0] = siphash(text, sizeof(text), &keys->site);
	text[15] = '1';
	keys->frame.key[1] = siphash(text, sizeof(text), &keys->site);
	memzero_explicit(text, sizeof(text));
	keys->zero_hash = planner_hash_page(keys, zeros);
}

/**
 * planner_key_id() - the id that tells site keys apart
 * @keys:	the keys
 *
 * Context: Any.
 */
u32 planner_key_id(const struct planner_keys *keys)
{
	return (u32)siphash("pagehash-v1-kyid", 16, &keys->site);
}

/**
 * planner_session_id() - equal where frame ids compare: one site key, one load of the module
 * @keys:	the keys
 *
 * Context: Any.
 */
u64 planner_session_id(const struct planner_keys *keys)
{
	return siphash("pagehash-v1-sess", 16, &keys->frame);
}

/**
 * planner_mm_id() - an id for an address space that says nothing of its place in memory
 * @keys:	the keys
 * @mm:		the address space
 *
 * Context: Any.
 */
u64 planner_mm_id(const struct planner_keys *keys, const struct mm_struct *mm)
{
	/* 16 bytes of input: never the same as a frame number, which has 8. */
	return siphash_2u64((u64)(unsigned long)mm, 1, &keys->frame);
}

static u64 planner_frame_id(const struct planner_keys *keys, struct page *page)
{
	u64 id = siphash_1u64(page_to_pfn(page), &keys->frame);

	/* 0 means "none"; one frame in 2^64 shares its id. */
	return id ? id : 1;
}

/* Copies a page; false where memory failed, or the page is known to be bad. */
static bool planner_copy(void *to, struct page *page)
{
	unsigned long left;
	void *from;

	if (PageHWPoison(page))
		return false;
	from = kmap_local_page(page);
	left = copy_mc_to_kernel(to, from, PAGE_SIZE);
	kunmap_local(from);
	return !left;
}

static void planner_hash_entry(struct planner_dump *dump, const struct planner_entry *entry,
			       struct pagehash_page *slot)
{
	const struct planner_keys *keys = &dump->keys;

	slot->address = entry->address;
	slot->flags = entry->flags;
	slot->type = PAGEHASH_TYPE_PAGE;
	slot->node = PAGEHASH_NODE_UNKNOWN;
	if (!entry->page)
		return;
	slot->node = page_to_nid(entry->page);
	if (entry->is_shared)
		slot->frame_id = planner_frame_id(keys, entry->page);
	if (entry->flags & PAGEHASH_PAGE_NO_HASH)
		return;
	if (entry->flags & PAGEHASH_PAGE_ZERO_PAGE) {
		slot->hash = keys->zero_hash;
		slot->flags |= PAGEHASH_PAGE_ZERO;
	} else if (!planner_copy(dump->copy, entry->page)) {
		slot->flags |= PAGEHASH_PAGE_UNREADABLE;
		return;
	} else if (!memchr_inv(dump->copy, 0, PAGE_SIZE)) {
		slot->hash = keys->zero_hash;
		slot->flags |= PAGEHASH_PAGE_ZERO;
	} else {
		slot->hash = planner_hash_page(keys, dump->copy);
	}
	dump->sum.n_hashed++;
}

/**
 * planner_hash_entries() - make page slots of the collected entries, and let go of their pages
 * @dump:	the dump; dump->lock is held, no other lock is. There is room for all entries.
 *
 * Context: Process context. May sleep.
 */
void planner_hash_entries(struct planner_dump *dump)
{
	unsigned int i;

	for (i = 0; i < dump->n_entries; i++) {
		struct planner_entry *entry = &dump->entries[i];

		planner_hash_entry(dump, entry, &planner_push(dump)->page);
		if (entry->page && !(entry->flags & PAGEHASH_PAGE_ZERO_PAGE))
			put_page(entry->page);
		cond_resched();
	}
	dump->sum.n_pages += dump->n_entries;
	dump->n_entries = 0;
	memzero_explicit(dump->copy, PAGE_SIZE);
}
