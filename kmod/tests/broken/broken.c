// SPDX-License-Identifier: GPL-2.0
/*
 * Breaks the kernel it is loaded into, in the way it is told, so that it can be seen that the test
 * runner notices. For machines of kmod/tests only.
 */
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *how = "not";
module_param(how, charp, 0);
MODULE_PARM_DESC(how, "not, warn, bug, bad_page, leak, taint, use_after_free or hang");

static int __init broken_init(void)
{
	struct kmem_cache *cache;
	struct page *page;
	char *bytes;

	if (!strcmp(how, "warn"))
		WARN_ON(1);
	if (!strcmp(how, "bug"))
		BUG();
	if (!strcmp(how, "bad_page")) {
		page = alloc_page(GFP_KERNEL);
		if (page) {
			page->mapping = (void *)8;
			__free_page(page);
		}
	}
	if (!strcmp(how, "leak")) {
		cache = kmem_cache_create("broken", 100, 0, 0, NULL);
		if (cache && kmem_cache_alloc(cache, GFP_KERNEL))
			kmem_cache_destroy(cache);
	}
	if (!strcmp(how, "taint"))
		add_taint(TAINT_USER, LOCKDEP_STILL_OK);
	if (!strcmp(how, "use_after_free")) {
		cache = kmem_cache_create("broken", 100, 0, SLAB_POISON, NULL);
		bytes = cache ? kmem_cache_alloc(cache, GFP_KERNEL) : NULL;
		if (bytes) {
			kmem_cache_free(cache, bytes);
			OPTIMIZER_HIDE_VAR(bytes);
			bytes[60] = 1;
			bytes = kmem_cache_alloc(cache, GFP_KERNEL);
			kmem_cache_free(cache, bytes);
		}
		kmem_cache_destroy(cache);
	}
	if (!strcmp(how, "hang"))
		ssleep(1000);
	return 0;
}

static void __exit broken_exit(void)
{
}

module_init(broken_init);
module_exit(broken_exit);

MODULE_DESCRIPTION("Breaks the machine it is loaded into, for tests of the test runner");
MODULE_LICENSE("GPL");
