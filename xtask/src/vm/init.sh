#!/bin/busybox sh
# The first process of a guest: the host's files read-only under /host, tests in them, power off.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
load() {
    while read -r module parameters; do
        # Parameters are words of their own.
        $b insmod "/modules/$module" $parameters || echo "guest: cannot load $module"
    done <"/modules/$1"
}
load order
[ ! -e /tests/measuring ] || load measuring
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || echo "guest: no host files"
$b mount -t proc proc /host/proc
$b mount -t sysfs sysfs /host/sys
$b mount -t bpf bpf /host/sys/fs/bpf
$b mount -t devtmpfs dev /host/dev
$b mount -t tmpfs tmpfs /host/run
$b mount -t tmpfs tmpfs /host/tmp
$b mkdir /host/run/netns
$b ip link set lo up
echo "guest: Linux $($b uname -r) is up after $($b cut -d ' ' -f 1 /proc/uptime) s"
while read -r name folder program; do
    echo "guest: begin $name"
    # The kernel's words would come between the tests' own.
    $b chroot /host /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp CI=1 \
        GUIDEWAY_TEST_EFFORT=5 /bin/sh -c "cd '$folder' && exec $program $($b cat /tests/arguments)" </dev/null 2>&1
    echo "guest: end $name $?"
done </tests/list
$b poweroff -f
