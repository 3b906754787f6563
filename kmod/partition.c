// SPDX-License-Identifier: GPL-2.0
/*
 * Partitions as objects: names, permissions, references.
 *
 * A partition is kept by its name and by each open descriptor. The reaper looks at all of them every
 * few seconds, so that frames whose last mapping went are not kept for long.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "internal.h"
#include "partition_internal.h"

#define PLANNER_REAP_MS		5000
#define PLANNER_OPEN_FLAGS	(O_ACCMODE | O_CLOEXEC | KSM_SYNC | KSM_CREAT | KSM_EXCL)

bool planner_allow_merge;
module_param_named(allow_merge, planner_allow_merge, bool, 0644);
MODULE_PARM_DESC(allow_merge, "let partitions be opened and memory be merged (default 0)");

/* Protects what follows, and is_linked and n_open of each partition. */
static DEFINE_MUTEX(planner_registry);
static LIST_HEAD(planner_partitions);
static unsigned int planner_n_partitions;

static void planner_reap(struct work_struct *work);
static DECLARE_DELAYED_WORK(planner_reaper, planner_reap);

static void planner_reap_later(void)
{
	queue_delayed_work(system_long_wq, &planner_reaper, msecs_to_jiffies(PLANNER_REAP_MS));
}

static void planner_reap(struct work_struct *work)
{
	struct planner_partition *partition;
	bool is_needed = planner_orphans_reap();

	mutex_lock(&planner_registry);
	list_for_each_entry(partition, &planner_partitions, list) {
		mutex_lock(&partition->lock);
		planner_table_reap(partition);
		mutex_unlock(&partition->lock);
		is_needed = true;
	}
	mutex_unlock(&planner_registry);
	if (is_needed)
		planner_reap_later();
}

static int planner_check_name(const char *name)
{
	if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strchr(name, '/'))
		return -EINVAL;
	return strlen(name) > KSM_PARTITION_NAME_MAX ? -ENAMETOOLONG : 0;
}

/* The partition with a name, NULL where there is none. The registry is locked. */
static struct planner_partition *planner_partition_named(const char *name)
{
	struct planner_partition *partition;

	list_for_each_entry(partition, &planner_partitions, list)
		if (partition->is_linked && !strcmp(partition->name, name))
			return partition;
	return NULL;
}

/**
 * planner_partition_may() - has the caller this access by the permission bits?
 * @partition:	the partition
 * @access:	MAY_READ, MAY_WRITE
 */
bool planner_partition_may(const struct planner_partition *partition, unsigned int access)
{
	unsigned int granted = partition->mode;

	if (uid_eq(current_fsuid(), partition->uid))
		granted >>= 6;
	else if (in_group_p(partition->gid))
		granted >>= 3;
	return !(access & ~granted) || capable(CAP_DAC_OVERRIDE);
}

/* Frees a partition that has neither name nor descriptor. */
static void planner_partition_destroy(struct planner_partition *partition)
{
	planner_table_drop(partition);
	kobject_put(&partition->kobj);
}

/* Drops a reference that the caller has taken from is_linked or n_open. The registry is locked. */
static bool planner_partition_is_over(struct planner_partition *partition)
{
	if (partition->is_linked || partition->n_open)
		return false;
	list_del(&partition->list);
	planner_n_partitions--;
	return true;
}

/* Takes the name away, and with it directory and scanner. The registry is locked. */
static void planner_partition_unname(struct planner_partition *partition)
{
	WRITE_ONCE(partition->is_linked, false);
	kobject_del(&partition->kobj);
	planner_scan_stop(partition);
}

/* Makes a partition. The registry is locked. */
static struct planner_partition *planner_partition_create(const char *name, bool is_sync,
							  umode_t mode)
{
	struct planner_partition *partition;
	int ret;

	if (planner_n_partitions >= KSM_PARTITION_MAX)
		return ERR_PTR(-ENOSPC);
	partition = kzalloc(sizeof(*partition), GFP_KERNEL_ACCOUNT);
	if (!partition)
		return ERR_PTR(-ENOMEM);
	planner_sysfs_prepare(partition);
	mutex_init(&partition->lock);
	INIT_LIST_HEAD(&partition->ranges);
	init_waitqueue_head(&partition->wake);
	strscpy(partition->name, name, sizeof(partition->name));
	partition->uid = current_fsuid();
	partition->gid = current_fsgid();
	partition->mode = mode & ~current_umask();
	partition->is_sync = is_sync;
	ret = planner_scan_start(partition);
	if (ret)
		goto put;
	ret = planner_sysfs_add(partition);
	if (ret)
		goto stop;
	partition->is_linked = true;
	list_add(&partition->list, &planner_partitions);
	planner_n_partitions++;
	planner_reap_later();
	return partition;

stop:
	planner_scan_stop(partition);
put:
	kobject_put(&partition->kobj);
	return ERR_PTR(ret);
}

/* The partition to open, made if need be; no reference is taken. The registry is locked. */
static struct planner_partition *planner_partition_get(const char *name, u32 flags, u32 mode)
{
	struct planner_partition *partition = planner_partition_named(name);
	unsigned int access = 0;

	if (!partition) {
		if (!(flags & KSM_CREAT))
			return ERR_PTR(-ENOENT);
		return planner_partition_create(name, flags & KSM_SYNC, mode);
	}
	if (flags & KSM_CREAT && flags & KSM_EXCL)
		return ERR_PTR(-EEXIST);
	if ((flags & O_ACCMODE) != O_WRONLY)
		access |= MAY_READ;
	if ((flags & O_ACCMODE) != O_RDONLY)
		access |= MAY_WRITE;
	if (!planner_partition_may(partition, access))
		return ERR_PTR(-EACCES);
	if (flags & KSM_SYNC && !partition->is_sync)
		return ERR_PTR(-EOPNOTSUPP);
	return partition;
}

/**
 * planner_partition_open() - open a partition, or make one
 * @name:	its name
 * @flags:	as for ksm_open()
 * @mode:	permission bits of a new one
 * @found:	the partition, with a reference for planner_partition_close()
 *
 * Context: Process context. May sleep.
 * Return: 0 or an error, see the header.
 */
int planner_partition_open(const char *name, u32 flags, u32 mode, struct planner_partition **found)
{
	struct planner_partition *partition;
	int ret;

	if (!READ_ONCE(planner_allow_merge))
		return -EPERM;
	ret = planner_check_name(name);
	if (ret)
		return ret;
	if (flags & ~PLANNER_OPEN_FLAGS || (flags & O_ACCMODE) == O_ACCMODE || mode & ~0777)
		return -EINVAL;
	if (mutex_lock_interruptible(&planner_registry))
		return -EINTR;
	partition = planner_partition_get(name, flags, mode);
	if (!IS_ERR(partition)) {
		partition->n_open++;
		*found = partition;
	}
	mutex_unlock(&planner_registry);
	return PTR_ERR_OR_ZERO(partition);
}

/**
 * planner_partition_unlink() - take away a partition's name
 * @name:	the name
 *
 * Context: Process context. May sleep.
 * Return: 0 or an error, see the header.
 */
int planner_partition_unlink(const char *name)
{
	struct planner_partition *partition;
	bool is_over = false;
	int ret;

	ret = planner_check_name(name);
	if (ret)
		return ret;
	if (mutex_lock_interruptible(&planner_registry))
		return -EINTR;
	partition = planner_partition_named(name);
	if (!partition) {
		ret = -ENOENT;
	} else if (!uid_eq(current_fsuid(), partition->uid) && !capable(CAP_FOWNER)) {
		ret = -EACCES;
	} else {
		planner_partition_unname(partition);
		is_over = planner_partition_is_over(partition);
	}
	mutex_unlock(&planner_registry);
	if (is_over)
		planner_partition_destroy(partition);
	return ret;
}

/**
 * planner_partition_close() - drop a descriptor's reference
 * @partition:	may be gone afterwards
 *
 * Context: Process context. May sleep.
 */
void planner_partition_close(struct planner_partition *partition)
{
	bool is_over;

	mutex_lock(&planner_registry);
	partition->n_open--;
	is_over = planner_partition_is_over(partition);
	mutex_unlock(&planner_registry);
	if (is_over)
		planner_partition_destroy(partition);
}

/**
 * planner_partition_init() - make partitions possible
 *
 * Return: 0 or a negative error.
 */
int planner_partition_init(void)
{
	int ret = planner_table_init();

	if (ret)
		return ret;
	planner_merge_init();
	ret = planner_sysfs_init();
	if (ret)
		goto exit_table;
	ret = planner_partition_device_init();
	if (ret)
		goto exit_sysfs;
	return 0;

exit_sysfs:
	planner_sysfs_exit();
exit_table:
	planner_table_exit();
	return ret;
}

/**
 * planner_partition_exit() - end all partitions
 *
 * Context: Process context. No descriptor is open: each holds the module. What is merged stays so,
 * in frames that are the kernel's only from now on.
 */
void planner_partition_exit(void)
{
	struct planner_partition *partition, *next;

	planner_partition_device_exit();
	cancel_delayed_work_sync(&planner_reaper);
	/* Nobody can open one any more; sysfs may be in use until its directory is gone. */
	list_for_each_entry_safe(partition, next, &planner_partitions, list) {
		planner_partition_unname(partition);
		if (planner_partition_is_over(partition))
			planner_partition_destroy(partition);
	}
	planner_sysfs_exit();
	planner_table_exit();
}
