// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/mm/ksm/partition/<name>/.
 *
 * /sys/kernel/mm/ksm belongs to the kernel's own KSM, and is a group of attributes, not an object; its
 * parent is not exported on 6.12. So its node is looked up by name, and an object that stands for
 * it is made the parent of ours. Where that cannot be had (CONFIG_KSM=n), or is not wanted
 * (own_directory=1), the directory is /sys/kernel/ksm_partition.
 */
#include <linux/kernfs.h>
#include <linux/kobject.h>
#include <linux/moduleparam.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "partition_internal.h"

static bool planner_own_directory;
module_param_named(own_directory, planner_own_directory, bool, 0444);
MODULE_PARM_DESC(own_directory, "/sys/kernel/ksm_partition, not /sys/kernel/mm/ksm/partition");

/* Stands for /sys/kernel/mm/ksm; never released. */
static struct kobject planner_ksm_kobject;
static struct kobject *planner_directory;

static struct planner_partition *planner_partition_of(struct kobject *kobj)
{
	return container_of(kobj, struct planner_partition, kobj);
}

/* The counters of now; 0 or -EINTR. */
static int planner_sum_get(struct planner_partition *partition, struct ksm_partition_counters *sum)
{
	if (mutex_lock_interruptible(&partition->lock))
		return -EINTR;
	planner_table_reap(partition);
	*sum = partition->sum;
	mutex_unlock(&partition->lock);
	return 0;
}

#define PLANNER_COUNTER(field) \
static ssize_t field##_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer) \
{ \
	struct ksm_partition_counters sum; \
	int ret = planner_sum_get(planner_partition_of(kobj), &sum); \
\
	return ret ? ret : sysfs_emit(buffer, "%llu\n", (u64)sum.field); \
} \
static struct kobj_attribute field##_attribute = __ATTR_RO(field)

PLANNER_COUNTER(pages_shared);
PLANNER_COUNTER(pages_sharing);
PLANNER_COUNTER(pages_unshared);
PLANNER_COUNTER(pages_volatile);
PLANNER_COUNTER(pages_scanned);
PLANNER_COUNTER(full_scans);
PLANNER_COUNTER(calls);

static ssize_t owner_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%u\n", from_kuid_munged(current_user_ns(),
							   planner_partition_of(kobj)->uid));
}
static struct kobj_attribute owner_attribute = __ATTR_RO(owner);

static ssize_t group_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%u\n", from_kgid_munged(current_user_ns(),
							   planner_partition_of(kobj)->gid));
}
static struct kobj_attribute group_attribute = __ATTR_RO(group);

static ssize_t mode_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%04o\n", planner_partition_of(kobj)->mode);
}
static struct kobj_attribute mode_attribute = __ATTR_RO(mode);

static ssize_t sync_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%u\n", planner_partition_of(kobj)->is_sync);
}
static struct kobj_attribute sync_attribute = __ATTR_RO(sync);

/* Settings of the scanner; a partition without one has none. */

static ssize_t planner_setting_store(struct kobject *kobj, const char *buffer, size_t count,
				     u32 *setting)
{
	struct planner_partition *partition = planner_partition_of(kobj);
	u32 value;
	int ret;

	if (!planner_partition_may(partition, MAY_WRITE))
		return -EACCES;
	if (partition->is_sync)
		return -EOPNOTSUPP;
	ret = kstrtou32(buffer, 10, &value);
	if (ret)
		return ret;
	if (mutex_lock_interruptible(&partition->lock))
		return -EINTR;
	*setting = value;
	partition->is_kicked = true;
	mutex_unlock(&partition->lock);
	wake_up_interruptible(&partition->wake);
	return count;
}

#define PLANNER_SETTING(field) \
static ssize_t field##_show(struct kobject *kobj, struct kobj_attribute *attribute, char *buffer) \
{ \
	return sysfs_emit(buffer, "%u\n", READ_ONCE(planner_partition_of(kobj)->sum.field)); \
} \
static ssize_t field##_store(struct kobject *kobj, struct kobj_attribute *attribute, \
			     const char *buffer, size_t count) \
{ \
	return planner_setting_store(kobj, buffer, count, &planner_partition_of(kobj)->sum.field); \
} \
static struct kobj_attribute field##_attribute = __ATTR_RW(field)

PLANNER_SETTING(pages_to_scan);
PLANNER_SETTING(sleep_millisecs);

/* merge and unmerge: "PID ADDR SIZE", numbers as in C. */

static ssize_t planner_call_store(struct kobject *kobj, const char *buffer, size_t count,
				  int (*step)(struct planner_batch *batch), bool is_merge)
{
	struct planner_partition *partition = planner_partition_of(kobj);
	long long pid, address, length;
	struct planner_batch *batch;
	struct mm_struct *mm;
	int ret, n = 0;

	if (!planner_partition_may(partition, MAY_WRITE))
		return -EACCES;
	if (!partition->is_sync)
		return -EOPNOTSUPP;
	if (sscanf(buffer, "%lli %lli %lli %n", &pid, &address, &length, &n) != 3 || buffer[n])
		return -EINVAL;
	/* What does not fit a process's memory has nothing to be merged; nor does it wrap. */
	if (address < 0 || length < 0 || address > TASK_SIZE_MAX || length > TASK_SIZE_MAX)
		return -EINVAL;
	mm = planner_range_mm(clamp_t(long long, pid, 0, U32_MAX), address, length, is_merge);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	batch = planner_batch_new(partition, mm, address,
				  min_t(u64, address + length, TASK_SIZE_MAX));
	ret = batch ? planner_run(batch, step, true) : -ENOMEM;
	planner_batch_free(batch);
	mmdrop(mm);
	return ret ? ret : count;
}

static ssize_t merge_store(struct kobject *kobj, struct kobj_attribute *attribute,
			   const char *buffer, size_t count)
{
	return planner_call_store(kobj, buffer, count, planner_merge_step, true);
}
static struct kobj_attribute merge_attribute = __ATTR_WO(merge);

static ssize_t unmerge_store(struct kobject *kobj, struct kobj_attribute *attribute,
			     const char *buffer, size_t count)
{
	return planner_call_store(kobj, buffer, count, planner_unmerge_step, false);
}
static struct kobj_attribute unmerge_attribute = __ATTR_WO(unmerge);

static struct attribute *planner_attributes[] = {
	&pages_shared_attribute.attr,
	&pages_sharing_attribute.attr,
	&pages_unshared_attribute.attr,
	&pages_volatile_attribute.attr,
	&pages_scanned_attribute.attr,
	&full_scans_attribute.attr,
	&calls_attribute.attr,
	&owner_attribute.attr,
	&group_attribute.attr,
	&mode_attribute.attr,
	&sync_attribute.attr,
	&pages_to_scan_attribute.attr,
	&sleep_millisecs_attribute.attr,
	&merge_attribute.attr,
	&unmerge_attribute.attr,
	NULL
};

/*
 * Files have the partition's permission bits, as far as they make sense; sysfs has none that all may
 * write to. A file without any would not be there at all; such a one is left to its owner, and a
 * store looks at the partition's own.
 */
static umode_t planner_visible(struct kobject *kobj, struct attribute *attribute, int n)
{
	umode_t full = attribute->mode & 0200 ? 0220 : 0;
	umode_t mode;

	if (attribute->mode & 0400)
		full |= 0444;
	mode = planner_partition_of(kobj)->mode & full;
	return mode ? mode : attribute->mode & 0600;
}

static const struct attribute_group planner_group = {
	.attrs = planner_attributes,
	.is_visible = planner_visible,
};

/* refusals/: a file for each reason. */

/**
 * struct planner_refusal - the file of a reason
 * @attribute:	the file
 * @reason:	KSM_PARTITION_REFUSED_*
 */
struct planner_refusal {
	struct kobj_attribute attribute;
	unsigned int reason;
};

static ssize_t planner_refusal_show(struct kobject *kobj, struct kobj_attribute *attribute,
				    char *buffer)
{
	const struct planner_refusal *refusal = container_of(attribute, struct planner_refusal,
							     attribute);
	struct ksm_partition_counters sum;
	int ret = planner_sum_get(planner_partition_of(kobj), &sum);

	return ret ? ret : sysfs_emit(buffer, "%llu\n", sum.refused[refusal->reason]);
}

#define PLANNER_REFUSAL(lower, upper) \
static struct planner_refusal lower##_refusal = { \
	.attribute = __ATTR(lower, 0444, planner_refusal_show, NULL), \
	.reason = KSM_PARTITION_REFUSED_##upper, \
}

PLANNER_REFUSAL(mapping, MAPPING);
PLANNER_REFUSAL(hugetlb, HUGETLB);
PLANNER_REFUSAL(locked, LOCKED);
PLANNER_REFUSAL(userfaultfd, USERFAULTFD);
PLANNER_REFUSAL(mergeable, MERGEABLE);
PLANNER_REFUSAL(thp, THP);
PLANNER_REFUSAL(shared, SHARED);
PLANNER_REFUSAL(zero_page, ZERO_PAGE);
PLANNER_REFUSAL(swapped, SWAPPED);
PLANNER_REFUSAL(pinned, PINNED);
PLANNER_REFUSAL(busy, BUSY);
PLANNER_REFUSAL(changed, CHANGED);
PLANNER_REFUSAL(foreign, FOREIGN);
PLANNER_REFUSAL(special, SPECIAL);
PLANNER_REFUSAL(limit, LIMIT);
PLANNER_REFUSAL(memory, MEMORY);

static struct attribute *planner_refusals[] = {
	&mapping_refusal.attribute.attr,
	&hugetlb_refusal.attribute.attr,
	&locked_refusal.attribute.attr,
	&userfaultfd_refusal.attribute.attr,
	&mergeable_refusal.attribute.attr,
	&thp_refusal.attribute.attr,
	&shared_refusal.attribute.attr,
	&zero_page_refusal.attribute.attr,
	&swapped_refusal.attribute.attr,
	&pinned_refusal.attribute.attr,
	&busy_refusal.attribute.attr,
	&changed_refusal.attribute.attr,
	&foreign_refusal.attribute.attr,
	&special_refusal.attribute.attr,
	&limit_refusal.attribute.attr,
	&memory_refusal.attribute.attr,
	NULL
};

static const struct attribute_group planner_refusal_group = {
	.name = "refusals",
	.attrs = planner_refusals,
	.is_visible = planner_visible,
};

static const struct attribute_group *planner_groups[] = {
	&planner_group,
	&planner_refusal_group,
	NULL
};

static void planner_kobject_release(struct kobject *kobj)
{
	struct planner_partition *partition = planner_partition_of(kobj);

	mutex_destroy(&partition->lock);
	kfree(partition);
}

static void planner_kobject_owner(compat_const_kobject *kobj, kuid_t *uid, kgid_t *gid)
{
	const struct planner_partition *partition = container_of(kobj, struct planner_partition, kobj);

	*uid = partition->uid;
	*gid = partition->gid;
}

static struct kobj_type planner_kobject_type = {
	.release = planner_kobject_release,
	.sysfs_ops = &kobj_sysfs_ops,
	.default_groups = planner_groups,
	.get_ownership = planner_kobject_owner,
};

/**
 * planner_sysfs_prepare() - make the partition's object, which frees the partition at its end
 * @partition:	zeroed
 */
void planner_sysfs_prepare(struct planner_partition *partition)
{
	kobject_init(&partition->kobj, &planner_kobject_type);
}

/**
 * planner_sysfs_add() - make the directory of a partition
 * @partition:	with name, owner and mode
 *
 * Return: 0 or a negative error.
 */
int planner_sysfs_add(struct planner_partition *partition)
{
	return kobject_add(&partition->kobj, planner_directory, "%s", partition->name);
}

/* The node of /sys/kernel/mm/ksm with a reference, or NULL. */
static struct kernfs_node *planner_ksm_node(void)
{
	struct kernfs_node *mm, *ksm;

	if (planner_own_directory)
		return NULL;
	mm = kernfs_find_and_get(kernel_kobj->sd, "mm");
	if (!mm)
		return NULL;
	ksm = kernfs_find_and_get(mm, "ksm");
	kernfs_put(mm);
	return ksm;
}

/**
 * planner_sysfs_init() - make the directory of partitions
 *
 * Return: 0 or -ENOMEM.
 */
int planner_sysfs_init(void)
{
	planner_ksm_kobject.sd = planner_ksm_node();
	if (planner_ksm_kobject.sd) {
		kref_init(&planner_ksm_kobject.kref);
		planner_ksm_kobject.name = "ksm";
		planner_ksm_kobject.state_initialized = 1;
		planner_directory = kobject_create_and_add("partition", &planner_ksm_kobject);
		if (planner_directory)
			return 0;
		kernfs_put(planner_ksm_kobject.sd);
		planner_ksm_kobject.sd = NULL;
	}
	planner_directory = kobject_create_and_add("ksm_partition", kernel_kobj);
	return planner_directory ? 0 : -ENOMEM;
}

/**
 * planner_sysfs_exit() - remove the directory of partitions, which is empty
 */
void planner_sysfs_exit(void)
{
	kobject_put(planner_directory);
	if (planner_ksm_kobject.sd)
		kernfs_put(planner_ksm_kobject.sd);
}
