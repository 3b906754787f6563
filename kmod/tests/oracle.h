/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The page hash once more, written from docs/page-hash.md and the specifications of XXH64 and
 * SipHash; it shares no code with the module or the kernel. Checked against published vectors by
 * t_content.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stdint.h>
#include <string.h>

static inline uint64_t oracle_rotl(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

#define XXP1 11400714785074694791ULL
#define XXP2 14029467366897019727ULL
#define XXP3 1609587929392839161ULL
#define XXP4 9650029242287828579ULL

/* XXH64 of n bytes, n a multiple of 32 and not 0. */
static inline uint64_t oracle_xxh64(const void *data, size_t n, uint64_t seed)
{
	uint64_t lane[4] = { seed + XXP1 + XXP2, seed + XXP2, seed, seed - XXP1 };
	static const int turns[4] = { 1, 7, 12, 18 };
	uint64_t h = 0, word;
	size_t at;
	int i;

	for (at = 0; at < n; at += 8) {
		memcpy(&word, (const char *)data + at, 8);
		i = at / 8 % 4;
		lane[i] = oracle_rotl(lane[i] + word * XXP2, 31) * XXP1;
	}
	for (i = 0; i < 4; i++)
		h += oracle_rotl(lane[i], turns[i]);
	for (i = 0; i < 4; i++)
		h = (h ^ oracle_rotl(lane[i] * XXP2, 31) * XXP1) * XXP1 + XXP4;
	h += n;
	h = (h ^ h >> 33) * XXP2;
	h = (h ^ h >> 29) * XXP3;
	return h ^ h >> 32;
}

/* SipHash-2-4 of n bytes under a 16-byte key. */
static inline uint64_t oracle_siphash(const uint8_t *key, const void *data, size_t n)
{
	uint64_t k[2], v[4], word;
	size_t at = 0;
	int round;

	memcpy(k, key, 16);
	v[0] = k[0] ^ 0x736f6d6570736575ULL;
	v[1] = k[1] ^ 0x646f72616e646f6dULL;
	v[2] = k[0] ^ 0x6c7967656e657261ULL;
	v[3] = k[1] ^ 0x7465646279746573ULL;
	for (;; at += 8) {
		int n_rounds = 2;

		word = 0;
		if (at > n) {
			v[2] ^= 0xff;
			n_rounds = 4;
		} else {
			memcpy(&word, (const char *)data + at, n - at < 8 ? n - at : 8);
			if (n - at < 8)
				word |= (uint64_t)n << 56;
		}
		v[3] ^= word;
		for (round = 0; round < n_rounds; round++) {
			v[0] += v[1];
			v[2] += v[3];
			v[1] = oracle_rotl(v[1], 13) ^ v[0];
			v[3] = oracle_rotl(v[3], 16) ^ v[2];
			v[0] = oracle_rotl(v[0], 32);
			v[2] += v[1];
			v[0] += v[3];
			v[1] = oracle_rotl(v[1], 17) ^ v[2];
			v[3] = oracle_rotl(v[3], 21) ^ v[0];
			v[2] = oracle_rotl(v[2], 32);
		}
		v[0] ^= word;
		if (n_rounds == 4)
			return v[0] ^ v[1] ^ v[2] ^ v[3];
	}
}

static inline uint64_t oracle_seed(const uint8_t *key)
{
	return oracle_siphash(key, "pagehash-v1-seed", 16);
}

static inline uint64_t oracle_page_hash(const uint8_t *key, const void *page)
{
	uint64_t hash = oracle_xxh64(page, 4096, oracle_seed(key));

	return oracle_siphash(key, &hash, 8);
}

#endif
