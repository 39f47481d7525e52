#!/usr/bin/env bash
# What happens to a host that installs the package: run by the test `deploy::the_package…` as root, in mount, network and process
# namespaces of its own. SCRATCH holds 1.deb and 2.deb; this host's file system lies below, unchanged.
set -euo pipefail
scratch=$1

mount --make-rprivate /
mkdir "$scratch"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/srv/evenkeel" "$root/debs"
cp "$scratch"/[12].deb "$root/debs/"
ip link set lo up
for address in 10.0.0.1 10.0.0.11 10.0.0.21; do ip addr add "$address/32" dev lo; done

cat > "$root/debs/steps" <<'STEPS'
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
say() { echo "step: $*"; }
# As the units run them: the service's user, no way to more rights.
as_service=(setpriv --reuid evenkeel --regid evenkeel --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all)
until_ok() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "in vain: $*"; cat /debs/*.log; exit 1; }

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

say 'start as the service user, under the shipped configurations'
# What the units' RuntimeDirectory and the operator make.
install -d -o evenkeel -g evenkeel -m 0750 /run/evenkeel /srv/evenkeel/disk1
# A disk of 4 TiB is more than this host has.
sed -i 's/^size = .*/size = "4GiB"/' /etc/evenkeel/node.toml
"${as_service[@]}" evenkeel init --dir /var/lib/evenkeel/coordinator
"${as_service[@]}" evenkeel coordinator run --config /etc/evenkeel/coordinator.toml >/debs/coordinator.log 2>&1 & coordinator=$!
export EVENKEEL_API=http://127.0.0.1:7400 EVENKEEL_TOKEN_FILE=/var/lib/evenkeel/coordinator/api.token
until_ok evenkeel status
install -o root -g evenkeel -m 0640 /dev/null /etc/evenkeel/join.token
evenkeel token create --role node > /etc/evenkeel/join.token
install -o root -g evenkeel -m 0640 "$EVENKEEL_TOKEN_FILE" /etc/evenkeel/token
start_node() { "${as_service[@]}" evenkeel node run --config /etc/evenkeel/node.toml >>/debs/node.log 2>&1 & node=$!; }
start_gateway() { "${as_service[@]}" evenkeel gateway --config /etc/evenkeel/gateway/vm1.toml >>/debs/gateway.log 2>&1 & gateway=$!; }
start_node
until_ok evenkeel pool create default --replicas 1 --min-replicas 1 --if-not-exists
evenkeel wait ready
evenkeel volume create vm1 --size 64MiB
start_gateway
until_ok test -S /run/evenkeel/vm1.sock
io() { qemu-io -f raw 'nbd+unix:///vm1?socket=/run/evenkeel/vm1.sock' "$@"; }
io -c 'write -P 7 0 8M' -c flush

say upgrade
echo '# changed here' >> /etc/evenkeel/node.toml
dpkg -i /debs/2.deb
dpkg-query -W -f '${Version}\n' evenkeel | grep -x 0.1.0-2
grep -x '# changed here' /etc/evenkeel/node.toml
kill -0 $coordinator $node $gateway
io -c 'read -P 7 0 8M' | tee /debs/read; ! grep -q failed /debs/read
kill $gateway; wait $gateway; kill $node; wait $node; kill $coordinator; wait $coordinator
"${as_service[@]}" evenkeel coordinator run --config /etc/evenkeel/coordinator.toml >/debs/coordinator.log 2>&1 & coordinator=$!
rm /etc/evenkeel/join.token
start_node
until_ok evenkeel wait ready --timeout 5
start_gateway
until_ok test -S /run/evenkeel/vm1.sock
io -c 'read -P 7 0 8M' | tee /debs/read; ! grep -q failed /debs/read
kill $gateway; wait $gateway; kill $node; wait $node; kill $coordinator; wait $coordinator

say remove
dpkg -r evenkeel
[ ! -e /usr/bin/evenkeel ] && [ ! -e /usr/lib/systemd/system/evenkeel-node.service ]
[ -e /etc/evenkeel/node.toml ] && [ -e /var/lib/evenkeel/coordinator/api.token ]
say purge
dpkg -P evenkeel
[ ! -e /etc/evenkeel/node.toml ]
[ -e /var/lib/evenkeel/coordinator/api.token ] && [ -e /srv/evenkeel/disk1 ]
getent passwd evenkeel >/dev/null
echo 'all steps passed'
STEPS
exec chroot "$root" bash /debs/steps
