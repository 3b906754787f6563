// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/ksm_planner: file operations. Everything that comes from outside is checked here.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>

#include "internal.h"

/* A cache of its own: the kernel complains at unload if a dump was not freed. */
static struct kmem_cache *planner_dump_cache;

/* Lets go of the target and of the key. dump->lock is held, or nobody else has the dump. */
static void planner_dump_forget(struct planner_dump *dump)
{
	if (dump->mm)
		mmdrop(dump->mm);
	dump->mm = NULL;
	memzero_explicit(&dump->keys, sizeof(dump->keys));
}

static void planner_dump_free(struct planner_dump *dump)
{
	planner_dump_forget(dump);
	kfree_sensitive(dump->copy);
	kvfree(dump->entries);
	kvfree(dump->out);
	mutex_destroy(&dump->lock);
	kmem_cache_free(planner_dump_cache, dump);
}

static struct planner_dump *planner_dump_alloc(void)
{
	struct planner_dump *dump = kmem_cache_zalloc(planner_dump_cache, GFP_KERNEL_ACCOUNT);

	if (!dump)
		return NULL;
	mutex_init(&dump->lock);
	dump->out = kvcalloc(PLANNER_OUT_SLOTS, sizeof(*dump->out), GFP_KERNEL_ACCOUNT);
	dump->entries = kvcalloc(PTRS_PER_PTE, sizeof(*dump->entries), GFP_KERNEL_ACCOUNT);
	dump->copy = kmalloc(PAGE_SIZE, GFP_KERNEL_ACCOUNT);
	if (!dump->out || !dump->entries || !dump->copy) {
		planner_dump_free(dump);
		return NULL;
	}
	return dump;
}

/**
 * planner_mm_of() - the address space of a process
 * @number:	its pid, in the caller's namespace
 *
 * Return: the address space with a reference (mm_count); -EINVAL for a number that is none and for
 * a kernel thread, -ESRCH.
 */
struct mm_struct *planner_mm_of(u32 number)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;
	bool is_kernel;

	if (number == 0 || number > INT_MAX)
		return ERR_PTR(-EINVAL);
	pid = find_get_pid(number);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	is_kernel = task->flags & PF_KTHREAD;
	mm = get_task_mm(task);
	put_task_struct(task);
	if (!mm)
		return ERR_PTR(is_kernel ? -EINVAL : -ESRCH);
	/* Hold the structure, not the memory, so that the target can exit while a dump is open. */
	mmgrab(mm);
	mmput(mm);
	return mm;
}

/* Checks all of a request but its pid. */
static int planner_check_start(const struct pagehash_start *start)
{
	if (start->flags & ~PAGEHASH_START_ALL)
		return -EINVAL;
	if (start->reserved0 || memchr_inv(start->reserved, 0, sizeof(start->reserved)))
		return -EINVAL;
	if (!PAGE_ALIGNED(start->start) || !PAGE_ALIGNED(start->end))
		return -EINVAL;
	if (start->start >= start->end)
		return -EINVAL;
	return 0;
}

static int planner_may_start(void)
{
	if (!capable(CAP_SYS_PTRACE))
		return -EPERM;
	/* What keeps root from reading memory through /proc/kcore keeps it from this. */
	return security_locked_down(LOCKDOWN_KCORE);
}

/* Copies the request, whose first field is its size; see the header for the errors. */
static int planner_copy_start(struct pagehash_start *start, const void __user *argument)
{
	u32 size;

	if (copy_from_user(&size, argument, sizeof(size)))
		return -EFAULT;
	if (size < PAGEHASH_START_SIZE)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(start, sizeof(*start), argument, size);
}

/* Puts the header into the empty output buffer. */
static void planner_put_header(struct planner_dump *dump, u32 pid)
{
	struct pagehash_header *header = (void *)dump->out;

	BUILD_BUG_ON(PAGEHASH_HEADER_SIZE + PAGEHASH_TRAILER_SIZE >
		     PLANNER_OUT_SLOTS * sizeof(union planner_slot));
	*header = (struct pagehash_header){
		.magic = PAGEHASH_MAGIC,
		.abi_major = PAGEHASH_ABI_MAJOR,
		.abi_minor = PAGEHASH_ABI_MINOR,
		.header_size = sizeof(*header),
		.record_size = sizeof(union planner_slot),
		.trailer_size = sizeof(struct pagehash_trailer),
		.page_bytes = PAGE_SIZE,
		.algorithm = PAGEHASH_ALGORITHM_XXH64_SIPHASH24,
		.hash_bits = PAGEHASH_HASH_BITS,
		.key_id = planner_key_id(&dump->keys),
		.zero_hash = dump->keys.zero_hash,
		.session_id = planner_session_id(&dump->keys),
		.mm_id = planner_mm_id(&dump->keys, dump->mm),
		.start = dump->pos,
		.end = dump->end,
		.start_ns = dump->sum.start_ns,
		.pid = pid,
		.flags = dump->flags,
	};
	dump->out_bytes = sizeof(*header);
	dump->out_pos = 0;
}

/* Puts the trailer behind what is in the output buffer (at most a header), and ends the dump. */
static void planner_put_trailer(struct planner_dump *dump, u32 status)
{
	dump->sum.magic = PAGEHASH_TRAILER_MAGIC;
	dump->sum.type = PAGEHASH_TYPE_TRAILER;
	dump->sum.status = status;
	dump->sum.walked_to = dump->pos;
	dump->sum.end_ns = ktime_get_real_ns();
	memcpy((void *)dump->out + dump->out_bytes, &dump->sum, sizeof(dump->sum));
	dump->out_bytes += sizeof(dump->sum);
	dump->phase = PLANNER_OVER;
	planner_dump_forget(dump);
}

static int planner_start(struct planner_dump *dump, const struct pagehash_start *start)
{
	struct mm_struct *mm = planner_mm_of(start->pid);

	if (IS_ERR(mm))
		return PTR_ERR(mm);
	if (mutex_lock_interruptible(&dump->lock)) {
		mmdrop(mm);
		return -EINTR;
	}
	planner_dump_forget(dump);
	dump->mm = mm;
	dump->flags = start->flags;
	dump->pos = min_t(u64, start->start, TASK_SIZE_MAX);
	dump->end = min_t(u64, start->end, TASK_SIZE_MAX);
	memset(&dump->seen, 0, sizeof(dump->seen));
	memset(&dump->sum, 0, sizeof(dump->sum));
	dump->sum.start_ns = ktime_get_real_ns();
	planner_keys_set(&dump->keys, start->key);
	planner_put_header(dump, start->pid);
	dump->phase = PLANNER_WALKING;
	mutex_unlock(&dump->lock);
	return 0;
}

static long planner_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct pagehash_start start;
	int ret;

	switch (command) {
	case PAGEHASH_IOC_ABI:
		return PAGEHASH_ABI_MAJOR << 16 | PAGEHASH_ABI_MINOR;
	case PAGEHASH_IOC_START:
		ret = planner_may_start();
		if (ret)
			return ret;
		ret = planner_copy_start(&start, (const void __user *)argument);
		if (!ret)
			ret = planner_check_start(&start);
		if (!ret)
			ret = planner_start(file->private_data, &start);
		memzero_explicit(&start, sizeof(start));
		return ret;
	default:
		return -ENOTTY;
	}
}

/* Fills the empty output buffer with the next part of the dump; leaves it empty at the end. */
static int planner_fill(struct planner_dump *dump)
{
	int ret = 0;

	dump->out_bytes = 0;
	dump->out_pos = 0;
	if (dump->phase == PLANNER_OVER)
		return 0;
	if (dump->pos >= dump->end) {
		planner_put_trailer(dump, PAGEHASH_STATUS_COMPLETE);
		return 0;
	}
	ret = planner_walk_step(dump);
	if (ret == -ESRCH) {
		planner_put_trailer(dump, PAGEHASH_STATUS_EXITED);
		return 0;
	}
	if (!ret)
		planner_hash_entries(dump);
	return ret;
}

static ssize_t planner_read(struct file *file, char __user *buffer, size_t count, loff_t *pos)
{
	struct planner_dump *dump = file->private_data;
	size_t done = 0;
	int ret = 0;

	if (mutex_lock_interruptible(&dump->lock))
		return -EINTR;
	if (dump->phase == PLANNER_IDLE)
		ret = -ENODATA;
	while (!ret && done < count) {
		size_t n = min(count - done, dump->out_bytes - dump->out_pos);

		/* All of a part or none is taken: a fault loses nothing. */
		if (copy_to_user(buffer + done, (void *)dump->out + dump->out_pos, n)) {
			ret = -EFAULT;
			break;
		}
		dump->out_pos += n;
		done += n;
		if (done == count)
			break;
		if (signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		cond_resched();
		while (!ret && dump->phase == PLANNER_WALKING && dump->out_pos == dump->out_bytes)
			ret = signal_pending(current) ? -EINTR : planner_fill(dump);
		if (dump->phase == PLANNER_OVER && dump->out_pos == dump->out_bytes)
			break;
	}
	mutex_unlock(&dump->lock);
	return done ? done : ret;
}

static int planner_open(struct inode *inode, struct file *file)
{
	struct planner_dump *dump = planner_dump_alloc();

	if (!dump)
		return -ENOMEM;
	file->private_data = dump;
	return stream_open(inode, file);
}

static int planner_release(struct inode *inode, struct file *file)
{
	planner_dump_free(file->private_data);
	return 0;
}

static const struct file_operations planner_fops = {
	.owner = THIS_MODULE,
	.open = planner_open,
	.release = planner_release,
	.read = planner_read,
	.unlocked_ioctl = planner_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice planner_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ksm_planner",
	.fops = &planner_fops,
	.mode = 0600,
};

/**
 * planner_chardev_init() - make the device
 *
 * Context: Process context.
 * Return: 0 or a negative error.
 */
int planner_chardev_init(void)
{
	int ret;

	planner_dump_cache = kmem_cache_create("ksm_planner_dump", sizeof(struct planner_dump), 0,
					       SLAB_ACCOUNT, NULL);
	if (!planner_dump_cache)
		return -ENOMEM;
	ret = misc_register(&planner_device);
	if (ret)
		goto destroy_cache;
	return 0;

destroy_cache:
	kmem_cache_destroy(planner_dump_cache);
	return ret;
}

/**
 * planner_chardev_exit() - remove the device
 *
 * Context: Process context. No file of the device is open: each holds the module.
 */
void planner_chardev_exit(void)
{
	misc_deregister(&planner_device);
	kmem_cache_destroy(planner_dump_cache);
}
