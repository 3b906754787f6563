"""A playbook: the tmpfiles.d file on every host, applied, and its values asserted."""

from __future__ import annotations

from planner.escape import quoted
from planner.exporters.common import Export
from planner.exporters.sysfs import settings_of
from planner.exporters.tmpfiles import PLACE
from planner.exporters.tmpfiles import render as tmpfiles_text

__all__ = ["render"]


def render(export: Export) -> str:
    """The playbook; `--tags undo` takes the file away and stops ksmd."""
    wanted = [(name, value) for name, value, optional in settings_of(export) if not optional]
    last = dict(wanted)  # of several lines on one file the last one stays
    head = export.comment(
        "ansible-playbook -i INVENTORY THIS --limit HOSTS",
        "Undo: ansible-playbook -i INVENTORY THIS --limit HOSTS --tags undo",
        "(removes the file and stops ksmd; merged pages stay merged, and pages_to_scan and the "
        "rest stay as set).")
    loop = "\n".join(f"        - {{name: {quoted(name)}, value: {quoted(value)}}}"
                     for name, value in last.items())
    title = quoted(f"KSM as in policy {export.policy.name}")
    return f"""{head}---
- name: {title}
  hosts: all
  become: true
  gather_facts: false
  tasks:
    - name: Settings for every boot
      ansible.builtin.copy:
        dest: {PLACE}
        content: !unsafe {quoted(tmpfiles_text(export))}
        owner: root
        group: root
        mode: "0644"
      register: ksm_planner_file

    - name: Settings now
      ansible.builtin.command:
        argv: [systemd-tmpfiles, --create, {PLACE}]
      when: ksm_planner_file is changed

    - name: Values of the host
      ansible.builtin.slurp:
        src: "/sys/kernel/mm/ksm/{{{{ item.name }}}}"
      loop:
{loop}
      register: ksm_planner_values
      when: not ansible_check_mode

    - name: The host has the values
      ansible.builtin.assert:
        that: item.content | b64decode | trim == item.item.value
        fail_msg: "{{{{ item.item.name }}}} is {{{{ item.content | b64decode | trim }}}}"
        quiet: true
      loop: "{{{{ ksm_planner_values.results }}}}"
      loop_control:
        label: "{{{{ item.item.name }}}}"
      when: not ansible_check_mode

    - name: Undo, remove the settings
      ansible.builtin.file:
        path: {PLACE}
        state: absent
      tags: [never, undo]

    - name: Undo, stop ksmd
      ansible.builtin.shell: echo 0 > /sys/kernel/mm/ksm/run
      tags: [never, undo]
"""
