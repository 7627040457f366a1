#!/bin/busybox sh
# First process of the guest. Makes the machine usable, runs /lab/command with
# its output on virtio-serial ports, hands back files and the exit status, and
# waits for the host to end the machine.
#
# Ports: 1 standard output, 2 standard error, 3 status, 4 files (a tar archive),
# 5 requests to end another machine of the cluster (tests/src/cluster/fence_lab).

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux LC_ALL=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mkdir -p /run/lock /run/rpcbind /run/rpc_pipefs /run/sendsigs.omit.d
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
hostname lab
ip link set lo up
/usr/sbin/modprobe -qa virtio_pci virtio_console

# Ports appear a moment after their driver, and a port's name a moment before
# it can be opened.
awaited() {
    until [ -c "$1" ] && (: >"$1") 2>/dev/null; do usleep 5000; done
}

cd /root

if [ -e /lab/console ]; then
    awaited /dev/hvc0
    read -r rows columns </lab/console
    # A terminal without a size says 0.
    [ "$rows" -gt 0 ] && stty -F /dev/hvc0 rows "$rows" cols "$columns"
    TERM=xterm setsid -c bash -l </dev/hvc0 >/dev/hvc0 2>&1
    poweroff -f
fi

awaited /dev/vport0p3
exec 3>/dev/vport0p3

# A port can be opened once only, and programs open /dev/stdout again: give
# them a pipe. Processes that the command leaves behind keep the pipe open, so
# its end is marked, not awaited.
for port in 1 2; do
    mkfifo /lab/pipe$port
    awaited /dev/vport0p$port
    cat /lab/pipe$port >/dev/vport0p$port &
done
exec 4>/lab/pipe1 5>/lab/pipe2

echo started >&3
/usr/bin/dash /lab/command </dev/null >&4 2>&5 3>&- 4>&- 5>&-
status=$?

cat /lab/end >&4
cat /lab/end >&5

size=0
if [ -s /lab/collect ]; then
    # A file that is not there is the caller's to notice.
    /usr/bin/tar --create --file=/lab/files.tar --ignore-failed-read \
        --directory=/ --files-from=/lab/collect 2>/dev/null
    size=$(stat -c %s /lab/files.tar)
    awaited /dev/vport0p4
    cat /lab/files.tar >/dev/vport0p4
fi
echo "exit $status files $size" >&3

exec sleep 100000
