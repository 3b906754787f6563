# What this guest is, from the kernel command line: fleet.name, fleet.tenant, fleet.role, fleet.seed, fleet.period.
for word in $(cat /proc/cmdline); do
    case $word in
        fleet.*=*) key=${word%%=*}; eval "FLEET_${key#fleet.}=\${word#*=}" ;;
    esac
done
export FLEET_name FLEET_tenant FLEET_role FLEET_seed FLEET_period
