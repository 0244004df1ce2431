import subprocess
def sh(c):
    p=subprocess.run(c, shell=True, capture_output=True, text=True)
    print("$",c); print(p.stdout+p.stderr)
UNIT="""[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mount | grep bpf; touch x; mkdir /sys/fs/bpf/before-%n; n=0; while [ $n -lt 40 ]; do sleep 0.2; n=$((n+1)); [ -e /run/go ] && break; done; echo after; mount | grep bpf; ls -la /sys/fs/bpf; mkdir /sys/fs/bpf/after-%n; ls /sys/fs/bpf; sleep 1'
CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_SYS_ADMIN
ProtectSystem=strict
PrivateTmp=yes
"""
def test_x():
    sh("mount | grep -E 'sys|bpf'; systemctl --failed; journalctl|grep -i -E 'fail|warn|cannot'; systemctl list-units --type=service;systemctl status sys-fs-bpf.mount")
    kinds={"plain":"","rw":"ReadWritePaths=/sys/fs/bpf\n","ro":"ReadOnlyPaths=-/sys/kernel -/sys/module -/sys/bus -/sys/devices -/sys/class -/sys/firmware -/sys/power -/proc/sys -/proc/sysrq-trigger -/proc/irq\n","tun":"ProtectKernelTunables=yes\nBindPaths=/sys/fs/bpf\n","tunro":"ProtectKernelTunables=yes\n"}
    for k,v in kinds.items():
        open(f"/run/systemd/system/u{k}.service","w").write(UNIT+v)
    sh("systemctl daemon-reload")
    for k in kinds: sh(f"systemctl start --no-block u{k}")
    sh("sleep 1; umount -l /sys/fs/bpf; sleep 0.2; mount -t bpf bpf /sys/fs/bpf; mkdir /sys/fs/bpf/new; sleep 0.3; touch /run/go; sleep 2; ls /sys/fs/bpf; systemctl status sys-fs-bpf.mount")
    for k in kinds: sh(f"journalctl -o cat -u u{k}")
    assert 0
