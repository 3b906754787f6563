// SPDX-License-Identifier: GPL-2.0
#include <linux/kobject.h>

static void owner(const struct kobject *kobj, kuid_t *uid, kgid_t *gid)
{
}

void probe(struct kobj_type *type);
void probe(struct kobj_type *type)
{
	type->get_ownership = owner;
}
