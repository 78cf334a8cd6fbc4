#!/bin/busybox sh
# The only program of a lab guest: a real Linux with ext4 on its protected disks and a small crash-safe ledger
# in them. On start it mounts (ext4 replays its journal), checks every record on every disk, and goes on
# writing; it tells how it is, one line of JSON each time, on its second serial port.
#
#   /disk0/ledger   "base N C", then "N C" for each transfer; C chains over all transfers before it
#   /diskN/ledger   the same; a transfer reaches disk n+1 only when disk n has it on stable storage
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    insmod /lib/$module.ko
done
stty -F /dev/ttyS1 raw -echo
exec 3>/dev/ttyS1

state=starting recovered=0 replayed=0 n=0 filesystem=""
beat() {
    printf '{"state":"%s","recovered":%d,"replayed":%d,"sequence":%d,"error":"%s","reconnects":0,"filesystem":"%s"}\n' \
        "$state" "$recovered" "$replayed" "$n" "$1" "$filesystem" >&3
}
# Says why for ever: whoever asks hears it.
fail() {
    state=failed
    echo "guest: $1"
    while :; do
        beat "$1"
        sleep 1
    done
}
chain() { c=$(((c * 31 + n * 7 + 17) % 1000003)); }

word() { sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
replica=$(word lab.replica)
pause=$(word lab.pause_us)
disks=$(word lab.disks)

beat
i=0
while [ $i -lt $disks ]; do
    device=/dev/vd$(printf 'abcdefghijklmnop' | cut -c$((i + 1)))
    tries=0
    while [ ! -b $device ]; do
        tries=$((tries + 1))
        [ $tries -gt 100 ] && fail "disk $i did not appear"
        usleep 50000
    done
    mkdir -p /disk$i
    mount -t ext4 -o errors=remount-ro $device /disk$i || fail "disk $i: ext4 cannot be mounted"
    i=$((i + 1))
done
replayed=$(dmesg | grep -c 'recovery complete')

# Prints "N C LINES TORN" or "bad WHY".
check() {
    awk '
        NR == 1 { if ($1 != "base" || NF != 3) { bad = "no base"; exit } n = $2; c = $3; next }
        torn    { bad = "a torn record in the middle"; exit }
        NF != 2 { torn = 1; next }
        {
            want = (c * 31 + (n + 1) * 7 + 17) % 1000003
            if ($1 != n + 1 || $2 != want) { bad = "record " (n + 1) " is wrong"; exit }
            n = $1; c = $2
        }
        END { if (bad) print "bad", bad; else print n, c, NR - torn, torn + 0 }
    ' "$1"
}
i=0
while [ $i -lt $disks ]; do
    file=/disk$i/ledger
    if [ ! -s $file ]; then
        [ "$replica" = 1 ] && fail "disk $i holds no ledger"
        # New only where the first disk is new, too: a lost ledger must not be mistaken for a new one.
        [ $i -gt 0 ] && [ $n -gt 0 ] && fail "disk $i lost its ledger"
        echo 'base 0 0' >$file
        sync $file
        sync -f /disk$i
    fi
    set -- $(check $file)
    [ "$1" = bad ] && shift && fail "disk $i: $*"
    if [ "$4" = 1 ]; then
        head -n $3 $file >$file.new && sync $file.new && mv $file.new $file && sync -f /disk$i
    fi
    if [ $i = 0 ]; then
        n=$1 c=$2 lines=$3
    else
        # The order between disks: never ahead of the disk before it, at most one behind.
        [ $1 -le $before ] && [ $((before - $1)) -le 1 ] || fail "disk $i is at transfer $1 and disk $((i - 1)) at $before"
        if [ $1 -lt $n ]; then
            echo "$n $c" >>$file
            sync $file
        fi
    fi
    before=$1
    i=$((i + 1))
done
recovered=$n

errors() {
    total=0
    for file in /sys/fs/ext4/vd*/errors_count; do
        read -r count <$file
        total=$((total + count))
    done
}
state=running
while :; do
    errors
    [ $total = 0 ] || fail "ext4 met $total errors"
    filesystem="ext4 mounted, $replayed journals replayed, no error"
    beat
    n=$((n + 1))
    chain
    lines=$((lines + 1))
    i=0
    while [ $i -lt $disks ]; do
        file=/disk$i/ledger
        if [ $lines -gt 400 ]; then
            # A new file takes the place of the full one: a rename that must survive a crash whole.
            echo "base $n $c" >$file.new && sync $file.new && mv $file.new $file && sync -f /disk$i || fail "disk $i: cannot be written"
        else
            echo "$n $c" >>$file && sync $file || fail "disk $i: cannot be written"
        fi
        i=$((i + 1))
    done
    [ $lines -gt 400 ] && lines=1
    usleep $pause
done
