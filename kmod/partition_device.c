// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/ksm_partition and the descriptors of partitions. Everything that comes from outside is checked
 * here, but names and flags, which partition.c checks.
 */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "internal.h"
#include "partition_internal.h"

/**
 * struct planner_handle - a descriptor
 * @partition:	with a reference
 * @is_sync:	opened with KSM_SYNC
 */
struct planner_handle {
	struct planner_partition *partition;
	bool is_sync;
};

/* Copies an argument, whose first field is its size; see the header for the errors. */
static int planner_copy_argument(void *to, u32 size, u32 size_min, const void __user *from)
{
	u32 user_size;

	if (copy_from_user(&user_size, from, sizeof(user_size)))
		return -EFAULT;
	if (user_size < size_min)
		return -EINVAL;
	if (user_size > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(to, size, from, user_size);
}

static char *planner_copy_name(u64 name)
{
	char *copy = strndup_user(u64_to_user_ptr(name), PAGE_SIZE);

	return copy == ERR_PTR(-EINVAL) ? ERR_PTR(-ENAMETOOLONG) : copy;
}

/* Whether the caller may have the memory of a process changed. */
static bool planner_may_change(struct mm_struct *mm)
{
	return mm == current->mm || ns_capable(mm->user_ns, CAP_SYS_PTRACE);
}

/**
 * planner_range_mm() - check a range and find its address space
 * @pid:	process or thread
 * @address:	first address
 * @length:	bytes
 * @is_merge:	refused while merging is off
 *
 * Return: the address space with a reference (mm_count); or an error, see the header.
 */
struct mm_struct *planner_range_mm(u32 pid, u64 address, u64 length, bool is_merge)
{
	struct mm_struct *mm;

	if (!PAGE_ALIGNED(address) || !PAGE_ALIGNED(length) || !length)
		return ERR_PTR(-EINVAL);
	/* The very end may be 2^64, which is 0. */
	if (address + length - 1 < address)
		return ERR_PTR(-EINVAL);
	if (!pid || pid > INT_MAX)
		return ERR_PTR(-ESRCH);
	mm = planner_mm_of(pid);
	if (IS_ERR(mm))
		return mm;
	if ((is_merge && !READ_ONCE(planner_allow_merge)) || !planner_may_change(mm)) {
		mmdrop(mm);
		return ERR_PTR(-EPERM);
	}
	return mm;
}

static int planner_put_counts(const struct ksm_partition_range *range,
			      const struct ksm_partition_counts *counts)
{
	if (!range->counts)
		return 0;
	if (copy_to_user(u64_to_user_ptr(range->counts), counts,
			 min_t(size_t, range->counts_size, sizeof(*counts))))
		return -EFAULT;
	return 0;
}

/* Pages of the range above what a process can have: there is nothing. */
static void planner_add_beyond(const struct ksm_partition_range *range,
			       struct ksm_partition_counts *counts)
{
	u64 last = range->address + range->length - 1;
	u64 from = max_t(u64, range->address, TASK_SIZE_MAX);

	if (last < from)
		return;
	counts->n_absent += (last - from + 1) >> PAGE_SHIFT;
	counts->n_requested += (last - from + 1) >> PAGE_SHIFT;
	counts->walked_to = last + 1;
}

/* What planner_range_ioctl() does, once all is checked. */
static int planner_range_do(struct planner_handle *handle, unsigned int command,
			    const struct ksm_partition_range *range, struct mm_struct *mm)
{
	/* The last byte, since the end may be 2^64. What is above a process's memory is cut off. */
	u64 last = range->address + range->length - 1;
	unsigned long start = min_t(u64, range->address, TASK_SIZE_MAX);
	unsigned long end = min_t(u64, last, TASK_SIZE_MAX - 1) + 1;
	struct planner_partition *partition = handle->partition;
	struct planner_batch *batch;
	int ret, error;

	batch = planner_batch_new(partition, mm, start, end);
	if (!batch)
		return -ENOMEM;
	switch (command) {
	case KSM_PARTITION_IOC_MERGE:
		ret = planner_run(batch, planner_merge_step, false);
		break;
	case KSM_PARTITION_IOC_UNMERGE:
		ret = planner_run(batch, planner_unmerge_step, false);
		break;
	case KSM_PARTITION_IOC_ATTACH:
		ret = planner_attach(partition, mm, start, end, &batch->counts);
		break;
	default:
		ret = planner_detach(partition, mm, start, end, &batch->counts);
	}
	if (!ret)
		planner_add_beyond(range, &batch->counts);
	error = planner_put_counts(range, &batch->counts);
	planner_batch_free(batch);
	return ret ? ret : error;
}

static int planner_range_ioctl(struct file *file, unsigned int command, const void __user *argument)
{
	bool is_call = command == KSM_PARTITION_IOC_MERGE || command == KSM_PARTITION_IOC_UNMERGE;
	bool is_merge = command == KSM_PARTITION_IOC_MERGE || command == KSM_PARTITION_IOC_ATTACH;
	struct planner_handle *handle = file->private_data;
	struct ksm_partition_range range;
	struct mm_struct *mm;
	int ret;

	ret = planner_copy_argument(&range, sizeof(range), KSM_PARTITION_RANGE_SIZE, argument);
	if (ret)
		return ret;
	if (range.flags)
		return -EINVAL;
	if (!(file->f_mode & FMODE_WRITE))
		return -EACCES;
	if (is_call ? !handle->is_sync : handle->partition->is_sync)
		return -EOPNOTSUPP;
	mm = planner_range_mm(range.pid, range.address, range.length, is_merge);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	ret = planner_range_do(handle, command, &range, mm);
	mmdrop(mm);
	return ret;
}

static int planner_counters_ioctl(struct file *file, void __user *argument)
{
	struct planner_handle *handle = file->private_data;
	struct planner_partition *partition = handle->partition;
	struct ksm_partition_counters counters;
	u32 size;

	if (copy_from_user(&size, argument, sizeof(size)))
		return -EFAULT;
	if (size < KSM_PARTITION_COUNTERS_SIZE)
		return -EINVAL;
	if (!(file->f_mode & FMODE_READ))
		return -EACCES;
	if (mutex_lock_interruptible(&partition->lock))
		return -EINTR;
	planner_table_reap(partition);
	counters = partition->sum;
	mutex_unlock(&partition->lock);
	counters.size = min_t(u32, size, sizeof(counters));
	counters.owner = from_kuid_munged(current_user_ns(), partition->uid);
	counters.group = from_kgid_munged(current_user_ns(), partition->gid);
	counters.mode = partition->mode;
	if (partition->is_sync)
		counters.flags |= KSM_PARTITION_IS_SYNC;
	if (READ_ONCE(partition->is_linked))
		counters.flags |= KSM_PARTITION_IS_LINKED;
	return copy_to_user(argument, &counters, counters.size) ? -EFAULT : 0;
}

static long planner_handle_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	switch (command) {
	case KSM_PARTITION_IOC_MERGE:
	case KSM_PARTITION_IOC_UNMERGE:
	case KSM_PARTITION_IOC_ATTACH:
	case KSM_PARTITION_IOC_DETACH:
		return planner_range_ioctl(file, command, (const void __user *)argument);
	case KSM_PARTITION_IOC_COUNTERS:
		return planner_counters_ioctl(file, (void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static int planner_handle_release(struct inode *inode, struct file *file)
{
	struct planner_handle *handle = file->private_data;

	planner_partition_close(handle->partition);
	kfree(handle);
	return 0;
}

static const struct file_operations planner_handle_fops = {
	.owner = THIS_MODULE,
	.release = planner_handle_release,
	.unlocked_ioctl = planner_handle_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static int planner_open_ioctl(const void __user *argument)
{
	struct ksm_partition_open open;
	struct planner_handle *handle;
	char *name;
	int ret;

	ret = planner_copy_argument(&open, sizeof(open), KSM_PARTITION_OPEN_SIZE, argument);
	if (ret)
		return ret;
	if (open.reserved)
		return -EINVAL;
	name = planner_copy_name(open.name);
	if (IS_ERR(name))
		return PTR_ERR(name);
	handle = kzalloc(sizeof(*handle), GFP_KERNEL_ACCOUNT);
	if (!handle) {
		ret = -ENOMEM;
		goto free_name;
	}
	handle->is_sync = open.flags & KSM_SYNC;
	ret = planner_partition_open(name, open.flags, open.mode, &handle->partition);
	if (ret)
		goto free_handle;
	ret = anon_inode_getfd("[ksm-partition]", &planner_handle_fops, handle,
			       (open.flags & O_ACCMODE) | O_CLOEXEC);
	if (ret < 0) {
		/* A partition that this call has made stays, as with open(2). */
		planner_partition_close(handle->partition);
		goto free_handle;
	}
	kfree(name);
	return ret;

free_handle:
	kfree(handle);
free_name:
	kfree(name);
	return ret;
}

static int planner_unlink_ioctl(const void __user *argument)
{
	struct ksm_partition_unlink unlink;
	char *name;
	int ret;

	ret = planner_copy_argument(&unlink, sizeof(unlink), KSM_PARTITION_UNLINK_SIZE, argument);
	if (ret)
		return ret;
	if (unlink.flags)
		return -EINVAL;
	name = planner_copy_name(unlink.name);
	if (IS_ERR(name))
		return PTR_ERR(name);
	ret = planner_partition_unlink(name);
	kfree(name);
	return ret;
}

static long planner_device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	switch (command) {
	case KSM_PARTITION_IOC_ABI:
		return KSM_PARTITION_ABI_MAJOR << 16 | KSM_PARTITION_ABI_MINOR;
	case KSM_PARTITION_IOC_OPEN:
		return planner_open_ioctl((const void __user *)argument);
	case KSM_PARTITION_IOC_UNLINK:
		return planner_unlink_ioctl((const void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations planner_device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = planner_device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice planner_partition_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksm_partition",
	.fops = &planner_device_fops,
	/* Who may do what is decided for each partition and each process. */
	.mode = 0666,
};

/**
 * planner_partition_device_init() - make the device
 *
 * Return: 0 or a negative error.
 */
int planner_partition_device_init(void)
{
	return misc_register(&planner_partition_device);
}

/**
 * planner_partition_device_exit() - remove the device
 */
void planner_partition_device_exit(void)
{
	misc_deregister(&planner_partition_device);
}
