// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>

bool probe(struct page *page);
bool probe(struct page *page)
{
	return folio_test_large(page_folio(page));
}
