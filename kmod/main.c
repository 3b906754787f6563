// SPDX-License-Identifier: GPL-2.0
/*
 * ksm_planner: lists the pages of an address space with keyed hashes of their content, without
 * disturbing them (include/uapi/planner/pagehash.h; internal.h says how the files fit together);
 * and, unless it is built without, merges equal pages within partitions
 * (include/uapi/planner/ksm_partition.h; partition_internal.h).
 */
#include <linux/module.h>

#include "internal.h"

static int __init planner_init(void)
{
	int ret;

	planner_hash_init();
	ret = planner_chardev_init();
	if (ret)
		goto exit_hash;
	ret = planner_partition_init();
	if (ret)
		goto exit_chardev;
	return 0;

exit_chardev:
	planner_chardev_exit();
exit_hash:
	planner_hash_exit();
	return ret;
}

static void __exit planner_exit(void)
{
	planner_partition_exit();
	planner_chardev_exit();
	planner_hash_exit();
}

module_init(planner_init);
module_exit(planner_exit);

MODULE_DESCRIPTION("Page-hash dumps and Selective KSM for ksm-planner");
MODULE_AUTHOR("The ksm-planner authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
