// the part of the CUDA driver API that cudarc uses, on top of the emulator. Handles are opaque pointers.
#include "emu_rt.h"
#include <vector>
#include <functional>
#include <memory>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <map>
typedef int R; typedef uint64_t DP; enum { OK=0, INVALID=1, OOM=2, NOT_FOUND=500, LAUNCH_FAILED=719, UNSUPPORTED_CAPTURE=900 };
struct Graph { std::vector<std::function<R()>> ops; }; struct Stream { Graph* cap=nullptr; int flags=0; }; struct Event { std::chrono::steady_clock::time_point t; };
struct Module { int x; }; struct Func { EmuK_* k; int max_dyn=48*1024; };
static Stream null_stream; static R sticky=OK; static size_t used=0; static std::map<DP,size_t> sizes; static void* cur_ctx=nullptr; static int dummy;
static Stream* S(void*s){ return (s==nullptr||s==(void*)1||s==(void*)2)?&null_stream:(Stream*)s; }
template<class F> static R enq(void*s,F f){ Stream*st=S(s); if(st->cap){ st->cap->ops.emplace_back(f); return OK; } return f(); }
static int envi(const char*n,int d){ const char*v=getenv(n); return v?atoi(v):d; }
extern "C" {
void emu_schedule(int order,uint64_t seed,int copies){ emu_config(order,seed,copies,EMU_CHECKING?2:1,1); } void emu_streams(int,uint64_t){}
size_t emu_take_report(char*b,size_t n){ const char*e=emu_last_error(); size_t k=strlen(e); if(k>n) k=n; memcpy(b,e,k); emu_clear_error(); sticky=OK; return k; }
R cuInit(unsigned){ emu_config(envi("EMU_SCHED",0),envi("EMU_SEED",1),envi("EMU_CP",1),envi("EMU_CHECK",EMU_CHECKING?2:1),envi("EMU_THREADS",1)); return OK; }
R cuDriverGetVersion(int*v){*v=13000;return OK;} R cuDeviceGetCount(int*n){*n=1;return OK;} R cuDeviceGet(int*d,int o){ if(o) return 101; *d=0; return OK;} 
R cuDeviceGetName(char*b,int n,int){ strncpy(b,"CPU emulator",n); return OK; } R cuDeviceTotalMem_v2(size_t*n,int){*n=1ull<<32;return OK;} R cuDeviceGetUuid_v2(void*u,int){memset(u,0,16);return OK;}
R cuDeviceGetAttribute(int*v,int a,int){ switch(a){ case 1:*v=1024;break; case 10:*v=32;break; case 8:*v=49152;break; case 16:*v=4;break; case 75:*v=9;break; case 76:*v=0;break; case 97:*v=232448;break; case 81:*v=232448;break; case 95:*v=1;break; case 115:*v=1;break; default:*v=0;} return OK; }
R cuDevicePrimaryCtxRetain(void**c,int){*c=&dummy;return OK;} R cuDevicePrimaryCtxRelease_v2(int){return OK;} R cuDevicePrimaryCtxRelease(int){return OK;} R cuCtxSetCurrent(void*c){cur_ctx=c;return OK;} R cuCtxGetCurrent(void**c){*c=cur_ctx;return OK;} R cuCtxSynchronize(){return sticky;} R cuMemGetInfo_v2(size_t*f,size_t*t){*t=1ull<<32;*f=*t-used;return OK;}
R cuStreamCreate(void**s,unsigned f){ auto*x=new Stream; x->flags=f; *s=x; return OK; } R cuStreamCreateWithPriority(void**s,unsigned f,int){return cuStreamCreate(s,f);} R cuStreamDestroy_v2(void*s){ delete (Stream*)s; return OK; } R cuStreamSynchronize(void*){return sticky;} R cuStreamWaitEvent(void*,void*,unsigned){return OK;}
R cuEventCreate(void**e,unsigned){*e=new Event;return OK;} R cuEventDestroy_v2(void*e){delete (Event*)e;return OK;} R cuEventRecord(void*e,void*){((Event*)e)->t=std::chrono::steady_clock::now();return OK;} R cuEventSynchronize(void*){return sticky;} R cuEventQuery(void*){return sticky;}
R cuEventElapsedTime_v2(float*ms,void*a,void*b){*ms=std::chrono::duration<float,std::milli>(((Event*)b)->t-((Event*)a)->t).count();return OK;} R cuEventElapsedTime(float*ms,void*a,void*b){return cuEventElapsedTime_v2(ms,a,b);}
R cuMemAlloc_v2(DP*p,size_t n){ size_t m=n?n:1; char*q=(char*)aligned_alloc(256,((m+255)/256+2)*256); memset(q,0xFF,((m+255)/256+2)*256); *p=(DP)(q+256); sizes[*p]=m; emu_alloc_add(q+256,m); used+=m; return OK; }
R cuMemFree_v2(DP p){ auto it=sizes.find(p); if(it==sizes.end()) return INVALID; used-=it->second; emu_alloc_del((void*)p); memset((void*)p,0xFF,it->second); free((char*)p-256); sizes.erase(it); return OK; }
R cuMemAllocAsync(DP*p,size_t n,void*){return cuMemAlloc_v2(p,n);} R cuMemFreeAsync(DP p,void*){return cuMemFree_v2(p);} R cuMemHostAlloc(void**p,size_t n,unsigned){*p=aligned_alloc(4096,(n+4095)/4096*4096);return *p?OK:OOM;} R cuMemFreeHost(void*p){free(p);return OK;}
static R chk(DP p,size_t n){ auto it=sizes.upper_bound(p); if(it==sizes.begin()) return INVALID; --it; return p+n<=it->first+it->second?OK:INVALID; }
R cuMemcpyHtoDAsync_v2(DP d,const void*s,size_t n,void*st){ if(chk(d,n)) return INVALID; return enq(st,[=]{memcpy((void*)d,s,n);return OK;}); } R cuMemcpyDtoHAsync_v2(void*d,DP s,size_t n,void*st){ if(chk(s,n)) return INVALID; return enq(st,[=]{memcpy(d,(void*)s,n);return sticky;}); } R cuMemcpyDtoDAsync_v2(DP d,DP s,size_t n,void*st){ if(chk(d,n)||chk(s,n)) return INVALID; return enq(st,[=]{memmove((void*)d,(void*)s,n);return OK;}); }
R cuMemcpyHtoD_v2(DP d,const void*s,size_t n){return cuMemcpyHtoDAsync_v2(d,s,n,nullptr);} R cuMemcpyDtoH_v2(void*d,DP s,size_t n){return cuMemcpyDtoHAsync_v2(d,s,n,nullptr);} R cuMemsetD8Async(DP d,unsigned char v,size_t n,void*st){ if(chk(d,n)) return INVALID; return enq(st,[=]{memset((void*)d,v,n);return OK;}); } R cuMemsetD8_v2(DP d,unsigned char v,size_t n){return cuMemsetD8Async(d,v,n,nullptr);}
R cuDeviceGetDefaultMemPool(void**p,int){*p=&dummy;return OK;} R cuMemPoolSetAttribute(void*,int,void*){return OK;} R cuMemPoolGetAttribute(void*,int,void*v){*(uint64_t*)v=used;return OK;} R cuMemPoolTrimTo(void*,size_t){return OK;}
R cuModuleLoadData(void**m,const void*){*m=new Module;return OK;} R cuModuleUnload(void*m){delete (Module*)m;return OK;} R cuModuleGetFunction(void**f,void*,const char*n){ EmuK_*k=emu_find(n); if(!k) return NOT_FOUND; static std::map<EmuK_*,Func*> c; auto&x=c[k]; if(!x){x=new Func;x->k=k;} *f=x; return OK; }
R cuFuncGetAttribute(int*v,int a,void*f){ *v= a==0?1024: a==8?((Func*)f)->max_dyn:0; return OK; } R cuFuncSetAttribute(void*f,int a,int v){ if(a==8){ if(v>232448) return INVALID; ((Func*)f)->max_dyn=v; } return OK; } R cuFuncGetParamInfo(void*f,size_t i,size_t*off,size_t*sz){ Func*x=(Func*)f; if((int)i>=x->k->nargs) return INVALID; *off=0; *sz=x->k->sizes[i]; return OK; }
R cuOccupancyMaxActiveBlocksPerMultiprocessor(int*n,void*,int b,size_t){*n=2048/b;return OK;} R cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,void*,int b,size_t,unsigned){*n=2048/b;return OK;}
static R launch(void*f,unsigned gx,unsigned gy,unsigned gz,unsigned bx,unsigned by,unsigned bz,unsigned sm,void*st,void**args,int coop){ Func*x=(Func*)f; if((int)sm>x->max_dyn||bx*by*bz>1024||!(gx&&gy&&gz&&bx&&by&&bz)) return INVALID;
  // copy the arguments: they must not be read after the call returns
  auto buf=std::make_shared<std::vector<unsigned char>>(); std::vector<size_t> off; for(int i=0;i<x->k->nargs;i++){ size_t o=(buf->size()+15)/16*16; buf->resize(o+x->k->sizes[i]); memcpy(buf->data()+o,args[i],x->k->sizes[i]); off.push_back(o);} 
  return enq(st,[=]()->R{ if(sticky) return sticky; std::vector<void*> a; for(size_t o:off) a.push_back(buf->data()+o); a.push_back(nullptr); R r=emu_launch(x->k,gx,gy,gz,bx,by,bz,sm,a.data(),coop); if(r==2){ fprintf(stderr,"EMU: %s\n",emu_last_error()); sticky=LAUNCH_FAILED; } return OK; }); }
R cuLaunchKernel(void*f,unsigned gx,unsigned gy,unsigned gz,unsigned bx,unsigned by,unsigned bz,unsigned sm,void*st,void**a,void**){return launch(f,gx,gy,gz,bx,by,bz,sm,st,a,0);} R cuLaunchCooperativeKernel(void*f,unsigned gx,unsigned gy,unsigned gz,unsigned bx,unsigned by,unsigned bz,unsigned sm,void*st,void**a){return launch(f,gx,gy,gz,bx,by,bz,sm,st,a,1);}
struct Cfg{unsigned gx,gy,gz,bx,by,bz,sm; void*st; void*attrs; unsigned na;}; R cuLaunchKernelEx(const Cfg*c,void*f,void**a,void**){return launch(f,c->gx,c->gy,c->gz,c->bx,c->by,c->bz,c->sm,c->st,a,0);}
R cuStreamBeginCapture_v2(void*s,int){ Stream*x=S(s); if(x==&null_stream||x->cap) return UNSUPPORTED_CAPTURE; x->cap=new Graph; return OK; } R cuStreamEndCapture(void*s,void**g){ *g=S(s)->cap; S(s)->cap=nullptr; return *g?OK:901; } R cuStreamIsCapturing(void*s,int*v){*v=S(s)->cap?1:0;return OK;}
R cuGraphInstantiateWithFlags(void**e,void*g,unsigned long long){*e=new Graph(*(Graph*)g);return OK;} R cuGraphLaunch(void*e,void*st){ for(auto&o:((Graph*)e)->ops){ R r=o(); if(r) return r; } return OK; } R cuGraphUpload(void*,void*){return OK;} R cuGraphExecDestroy(void*e){delete (Graph*)e;return OK;} R cuGraphDestroy(void*g){delete (Graph*)g;return OK;}

R cuTensorMapEncodeTiled(void*m,int dt,unsigned rank,void*g,const uint64_t*dims,const uint64_t*strides,const uint32_t*box,const uint32_t*es,int il,int sw,int l2,int oob){ static const int sz[]={1,2,4,4,8,8,2,4,8,2,4,4,4}; if(rank<2||rank>3||(uint64_t)g%16) return INVALID; memset(m,0,128); TensorMap*t=(TensorMap*)m; t->base=(uint64_t)g; t->rank=rank; t->element_bytes=sz[dt]; t->swizzle=sw; t->dim[2]=t->box[2]=1; for(unsigned i=0;i<rank;i++){ if(box[i]>256||!box[i]) return INVALID; t->dim[i]=dims[i]; t->box[i]=box[i]; } for(unsigned i=0;i+1<rank;i++){ if(strides[i]%16) return INVALID; t->pitch[i]=strides[i]; } return OK; }
R cuGetErrorString(R e,const char**s){ *s= e==LAUNCH_FAILED? emu_last_error(): e==0?"ok":"emulated error"; return OK; } R cuGetErrorName(R e,const char**s){*s="CUDA_ERROR";return OK;}
}
