#!/usr/bin/env bash
# What happens to a host that installs the package: run by the test `deploy::the_package…` as root, in mount and network namespaces of its
# own. SCRATCH holds 1.deb and 2.deb. The host is a container over this host's file system, which stays unchanged; systemd is its
# first process, so that the units start, or don't, as they would on a host.
set -euo pipefail
scratch=$1

mount --make-rprivate /
mkdir "$scratch"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
mkdir -p "$root/debs"
cp "$scratch"/[12].deb "$root/debs/"

# Nothing of this host's own services: the steps' unit alone is wanted, and when it ends the container does.
cat > "$root/etc/systemd/system/steps.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
Environment=DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/bash /debs/steps
ExecStopPost=-/bin/systemctl --no-block exit
StandardOutput=file:/debs/out
StandardError=file:/debs/out
UNIT

cat > "$root/debs/steps" <<'STEPS'
set -euo pipefail
say() { echo "step: $*"; }
until_ok() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "in vain: $*"; return 1; }
trap 'rc=$?; [ $rc = 0 ] || { systemctl --no-pager status "evenkeel-*" || true; journalctl --no-pager -u "evenkeel-*" || true; }' EXIT
units=(evenkeel-coordinator evenkeel-node evenkeel-gateway@vm1)
pids() { for unit in "${units[@]}"; do systemctl show -P MainPID "$unit"; done; }
io() { qemu-io -f raw 'nbd+unix:///vm1?socket=/run/evenkeel/vm1.sock' "$@"; }
holds() { io -c 'read -P 7 0 8M' > /debs/read && ! grep -q failed /debs/read; }

ip link set lo up
for address in 10.0.0.1 10.0.0.11 10.0.0.21; do ip addr add "$address/32" dev lo; done

say install
dpkg -i /debs/1.deb
dpkg -s evenkeel | grep -x 'Status: install ok installed'
getent passwd evenkeel | grep ':/usr/sbin/nologin$'
for file in /usr/bin/evenkeel /usr/lib/systemd/system/evenkeel-node.service /usr/share/man/man1/evenkeel-status.1.gz \
  /usr/share/bash-completion/completions/evenkeel /usr/share/doc/evenkeel/runbooks/EvenkeelUnavailable.md \
  /usr/share/evenkeel/prometheus/config/prometheus.yml /etc/evenkeel/coordinator.toml; do
  [ -s "$file" ] || { echo "$file is missing"; exit 1; }
done
[ "$(stat -c '%U:%G %a' /etc/evenkeel)" = 'root:evenkeel 750' ]
promtool check config --syntax-only /usr/share/evenkeel/prometheus/config/prometheus.yml
! systemctl is-active "${units[@]}" || { echo 'the package started something'; exit 1; }

say 'start the units, under the shipped configurations'
# A disk of 4 TiB is more than this host has.
sed -i 's/^size = .*/size = "4GiB"/' /etc/evenkeel/node.toml
setpriv --reuid evenkeel --regid evenkeel --clear-groups evenkeel init --dir /var/lib/evenkeel/coordinator
systemctl enable --now evenkeel-coordinator
export EVENKEEL_API=http://127.0.0.1:7400 EVENKEEL_TOKEN_FILE=/var/lib/evenkeel/coordinator/api.token
until_ok evenkeel status
install -o root -g evenkeel -m 0640 /dev/null /etc/evenkeel/join.token
evenkeel token create --role node > /etc/evenkeel/join.token
install -o root -g evenkeel -m 0640 "$EVENKEEL_TOKEN_FILE" /etc/evenkeel/token
install -d -o evenkeel -g evenkeel -m 0750 /srv/evenkeel/disk1
systemctl enable --now evenkeel-node
until_ok evenkeel pool create default --replicas 1 --min-replicas 1 --if-not-exists
evenkeel wait ready
evenkeel volume create vm1 --size 64MiB
systemctl enable --now evenkeel-gateway@vm1
until_ok test -S /run/evenkeel/vm1.sock
io -c 'write -P 7 0 8M' -c flush
for pid in $(pids); do
  [ "$(stat -c %U "/proc/$pid")" = evenkeel ]
  grep -Ex 'NoNewPrivs:\s1' "/proc/$pid/status"
  grep -Ex 'Seccomp:\s2' "/proc/$pid/status"
  grep -Ex 'CapBnd:\s0000000000000000' "/proc/$pid/status"
done
useradd --system prometheus 2>/dev/null || getent passwd prometheus
systemctl enable --now evenkeel-certificate@prometheus.timer
until_ok test -s /var/lib/evenkeel-certificate/prometheus/cert.pem
[ "$(stat -c %U /var/lib/evenkeel-certificate/prometheus/key.pem)" = prometheus ]

say 'what dies is started again, and the guest goes on'
before=$(pids)
for pid in $before; do kill -KILL "$pid"; done
for unit in "${units[@]}"; do until_ok systemctl is-active "$unit"; done
until_ok evenkeel wait ready --timeout 5
until_ok holds
[ "$before" != "$(pids)" ]

say upgrade
running=$(pids)
echo '# changed here' >> /etc/evenkeel/node.toml
dpkg -i /debs/2.deb
dpkg-query -W -f '${Version}\n' evenkeel | grep -x 0.1.0-2
grep -x '# changed here' /etc/evenkeel/node.toml
[ "$running" = "$(pids)" ]
holds
rm /etc/evenkeel/join.token
systemctl restart "${units[@]}"
until_ok evenkeel wait ready --timeout 5
until_ok holds

say remove
dpkg -r evenkeel
[ ! -e /usr/bin/evenkeel ] && [ ! -e /usr/lib/systemd/system/evenkeel-node.service ]
! systemctl is-active "${units[@]}" || { echo 'something runs on'; exit 1; }
[ -e /etc/evenkeel/node.toml ] && [ -e /var/lib/evenkeel/coordinator/api.token ]
say purge
dpkg -P evenkeel
[ ! -e /etc/evenkeel/node.toml ]
[ -e /var/lib/evenkeel/coordinator/api.token ] && [ -e /srv/evenkeel/disk1 ]
getent passwd evenkeel >/dev/null
echo 'all steps passed'
STEPS

# Without a manager of machines on this host: no registration, and no unit of its own.
systemd-nspawn --quiet --directory="$root" --boot --register=no --keep-unit --private-network --console=pipe -- --unit=steps.service \
  </dev/null >"$scratch/boot" 2>&1 || cat "$scratch/boot"
cat "$root/debs/out"
